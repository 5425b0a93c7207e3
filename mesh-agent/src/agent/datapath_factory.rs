//! Creates this node's data paths from the options. The only file of the agent that names their types.

use std::path::{Path, PathBuf};

use tracing::info;

use super::{
    DatapathFactory,
    preflight::{EbpfHost, Lock, ebpf_host},
};
use crate::{
    config::RunOptions,
    datapath::{
        Datapath, DatapathError, DatapathKind,
        ebpf::{self, EbpfDatapath, EbpfOptions},
        ipvs::{self, IpvsDatapath, IpvsOptions},
    },
    discovery::Scheduler,
};

/// The mesh's folder in the bpf file system.
pub(super) const PINS: &str = "mesh";

/// Where an agent keeps what must outlive it: the admin socket's folder, which in a container outlives the
/// agent's own file system.
pub(super) fn run_folder(admin_socket: &Path) -> &Path {
    admin_socket
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Creates data paths in this node's kernel.
pub(super) struct NodeDatapathFactory {
    options: RunOptions,
    scheduler: Scheduler,
    /// Held from the first use of eBPF on.
    bpffs: Option<Lock>,
}

impl NodeDatapathFactory {
    pub(super) fn new(options: RunOptions, scheduler: Scheduler) -> Self {
        Self {
            options,
            scheduler,
            bpffs: None,
        }
    }

    fn pins(&self) -> PathBuf {
        self.options.bpffs.join(PINS)
    }

    fn ipvs_options(&self) -> IpvsOptions {
        // Swarm gives its tasks an interface of their own towards the host; the orchestrator's have Docker's
        // default.
        let bridge = match self.scheduler {
            Scheduler::Swarm => "docker_gwbridge",
            Scheduler::Orchestrator => "docker0",
        };
        IpvsOptions {
            bridge: bridge.to_owned(),
            tunnel_port: self.options.geneve_port,
            service_address: self.options.service_address,
            run_directory: run_folder(&self.options.admin_socket).to_owned(),
            sysctls: self.options.sysctls.clone(),
        }
    }

    fn ebpf(&mut self) -> Result<EbpfDatapath, DatapathError> {
        let host = ebpf_host(&self.options, self.bpffs.take()).map_err(|error| DatapathError {
            operation: "prepare eBPF".to_owned(),
            source: error.into(),
        })?;
        let EbpfHost {
            cgroup,
            netns_cookie,
            lock,
        } = host;
        self.bpffs = Some(lock);
        let options = &self.options;
        EbpfDatapath::load(EbpfOptions {
            pins: self.pins(),
            cgroup,
            xdp: options.xdp,
            tc: options.tc,
            flow_capacity: options.flow_capacity,
            flood_limit: options.flood_limit,
            geneve_port: options.geneve_port,
            service_address: options.service_address,
            // No namespace has the cookie 0: no local process is served, instead of all of them.
            netns_cookie: netns_cookie.unwrap_or(0),
            load_when_used: false,
            map_sizes: Vec::new(),
            changed_maps: Vec::new(),
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
