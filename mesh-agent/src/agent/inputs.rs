//! What the data path follows from, kept apart from what it is to be: that depends on its kind.

use std::{net::Ipv4Addr, sync::Arc};

use crate::{
    datapath::DatapathKind,
    model::{Cluster, Desired, Local, desired::desired},
};

/// What the data path follows from: the cluster, and what the node finds on itself.
pub(super) enum Inputs {
    /// In no Swarm: nothing is balanced.
    Outside,
    /// A node of a cluster.
    Member {
        cluster: Arc<Cluster>,
        local: Box<Local>,
        service_address: Ipv4Addr,
    },
}

impl Inputs {
    /// What a data path of a kind is to be.
    pub(super) fn desired(&self, kind: DatapathKind) -> Desired {
        match self {
            Self::Outside => Desired::default(),
            Self::Member {
                cluster,
                local,
                service_address,
            } => {
                let mut local = Local::clone(local);
                local.datapath = kind.into();
                if kind != DatapathKind::Ebpf {
                    local.mesh0 = None;
                }
                desired(cluster, &local, *service_address)
            }
        }
    }
}
