//! Makes the data paths of this node from the command line. The only file of the agent that names them.

use std::path::{Path, PathBuf};

use tracing::info;

use super::{
    DatapathFactory,
    preflight::{EbpfGround, Lock, ebpf_ground},
};
use crate::{
    config::RunOptions,
    datapath::{
        Datapath, DatapathError, DatapathKind,
        ebpf::{self, EbpfDatapath, EbpfOptions},
        ipvs::{self, IpvsDatapath, IpvsOptions},
    },
};

/// The folder below the bpf file system in which everything is the mesh's.
const PINS: &str = "mesh";

/// Brings data paths into this node's kernel.
pub(super) struct NodeDatapathFactory {
    options: RunOptions,
    /// Held from the first use of eBPF on.
    bpffs: Option<Lock>,
}

impl NodeDatapathFactory {
    pub(super) fn new(options: RunOptions) -> Self {
        Self { options, bpffs: None }
    }

    fn pins(&self) -> PathBuf {
        self.options.bpffs.join(PINS)
    }

    fn ipvs_options(&self) -> IpvsOptions {
        // Swarm's tasks have an interface of their own towards the host, orchestrated ones Docker's default.
        let bridge = match self.options.orchestrator.orchestrator {
            true => "docker0",
            false => "docker_gwbridge",
        };
        IpvsOptions {
            bridge: bridge.to_owned(),
            tunnel_port: self.options.geneve_port,
            service_address: self.options.service_address,
            // Where the admin socket is, which outlives the agent's own file system in a container.
            run_directory: self
                .options
                .admin_socket
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned(),
            sysctls: self.options.sysctls.clone(),
        }
    }

    fn ebpf(&mut self) -> Result<EbpfDatapath, DatapathError> {
        let ground = ebpf_ground(&self.options, self.bpffs.take()).map_err(|error| DatapathError {
            operation: "prepare eBPF".to_owned(),
            source: error.into(),
        })?;
        let EbpfGround {
            cgroup,
            netns_cookie,
            lock,
        } = ground;
        self.bpffs = Some(lock);
        let options = &self.options;
        EbpfDatapath::load(EbpfOptions {
            pins: self.pins(),
            cgroup,
            xdp: options.xdp,
            tc: options.tc,
            flow_capacity: options.flow_capacity,
            geneve_port: options.geneve_port,
            service_address: options.service_address,
            // No namespace has the cookie 0: nobody is served rather than everybody.
            netns_cookie: netns_cookie.unwrap_or(0),
        })
    }
}

impl DatapathFactory for NodeDatapathFactory {
    fn make(&mut self, kind: DatapathKind) -> Result<Box<dyn Datapath>, DatapathError> {
        match kind {
            DatapathKind::Ebpf => Ok(Box::new(self.ebpf()?)),
            DatapathKind::Ipvs => Ok(Box::new(IpvsDatapath::new(self.ipvs_options())?)),
        }
    }

    fn clear(&mut self, kind: DatapathKind) -> Result<(), DatapathError> {
        match kind {
            DatapathKind::Ebpf => {
                if ebpf::remove_leftovers(&self.pins())? {
                    info!("removed what an earlier agent left of eBPF");
                }
            }
            DatapathKind::Ipvs => {
                if ipvs::remove_leftovers(self.ipvs_options())? {
                    info!("removed what an earlier agent left of IPVS");
                }
            }
        }
        Ok(())
    }
}
