//! The inputs of the desired state, kept apart from the state itself, which depends on the kind of data path.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use crate::{
    datapath::DatapathKind,
    model::{
        Checks, Cluster, Desired, Local, NoHook, ServiceKey,
        desired::{desired, failing_open},
    },
};

/// The cluster, and what the node has found out about itself.
pub(super) enum Inputs {
    /// In no cluster: nothing is balanced.
    Outside,
    /// A node of a cluster.
    Member {
        cluster: Arc<Cluster>,
        local: Box<Local>,
        /// The kind of data path that the peers were probed for.
        probed: DatapathKind,
        service_address: Ipv4Addr,
    },
}

impl Inputs {
    /// The peers that a data path of this kind has no hook towards. Only eBPF needs hooks.
    pub(super) fn without_hook(&self, kind: DatapathKind) -> BTreeMap<Ipv4Addr, NoHook> {
        match (self, kind) {
            (Self::Member { local, .. }, DatapathKind::Ebpf) => local.without_hook.clone(),
            (Self::Member { .. } | Self::Outside, DatapathKind::Ebpf | DatapathKind::Ipvs) => BTreeMap::new(),
        }
    }

    /// The services of a desired state all of whose replicas fail their check.
    pub(super) fn failing_services(&self, desired: &Desired) -> Vec<ServiceKey> {
        match self {
            Self::Outside => Vec::new(),
            Self::Member { cluster, local, .. } => {
                let checks = Checks {
                    cluster,
                    own: &local.node,
                    failed: &local.failed,
                };
                failing_open(desired, checks)
            }
        }
    }

    /// The desired state of a data path of this kind.
    pub(super) fn desired(&self, kind: DatapathKind) -> Desired {
        match self {
            Self::Outside => Desired::default(),
            Self::Member {
                cluster,
                local,
                probed,
                service_address,
            } => {
                let mut local = Local::clone(local);
                local.datapath = kind.into();
                if kind != *probed {
                    local.forget_probes();
                }
                if kind != DatapathKind::Ebpf {
                    local.mesh0 = None;
                }
                local.without_hook = self.without_hook(kind);
                desired(cluster, &local, *service_address)
            }
        }
    }
}
