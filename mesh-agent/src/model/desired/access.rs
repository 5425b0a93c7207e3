//! Who may come in to a published port of this node, and where: from the firewall of the host and the labels
//! of the service.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use super::{
    published::{closed, interface_policy},
    types::ServiceKey,
};
use crate::model::{Ingress, Local, Node, NodeDatapath, PortPolicy, Service, SourcePolicy};

/// Who may come in, and where.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Who may; `None` for everyone.
    pub(super) policy: Option<Arc<SourcePolicy>>,
    /// The addresses at which no one may.
    pub(super) closed: BTreeSet<Ipv4Addr>,
}

/// The access to a published port; or the rule for which the port is left to Docker's mesh. Packets to IPVS
/// do not pass DOCKER-USER, and neither its rules nor labels are translated for it.
pub(super) fn access(
    local: &Local,
    own: Option<&Node>,
    key: ServiceKey,
    service: &Service,
) -> Result<Access, Arc<str>> {
    let of_host = host_policy(local, key)?;
    let of_clients = (!service.clients.are_all()).then(|| service.clients.rules());
    let of_interfaces = interface_policy(&service.publish_on, &local.uplinks);
    let closed = closed(&service.publish_on, &local.node, own, &local.addresses);
    if local.datapath == NodeDatapath::Ipvs {
        if of_clients.is_some() {
            return Err("its labels mesh.allow and mesh.deny, which do not hold on IPVS".into());
        }
        if of_interfaces.is_some() || !closed.is_empty() {
            return Err("its label mesh.publish-on, which does not hold on IPVS".into());
        }
    }
    if of_clients.is_none() && of_interfaces.is_none() {
        return Ok(Access {
            policy: of_host,
            closed,
        });
    }
    let of_clients = of_clients.and_then(|rules| SourcePolicy::new([(Ingress::Any, rules)]));
    let of_labels = SourcePolicy::both(of_clients, of_interfaces);
    let policy = SourcePolicy::both(of_host.map(Arc::unwrap_or_clone), of_labels);
    Ok(Access {
        policy: policy.map(Arc::new),
        closed,
    })
}

fn host_policy(local: &Local, key: ServiceKey) -> Result<Option<Arc<SourcePolicy>>, Arc<str>> {
    match local.host_firewall.of(key.protocol, key.port) {
        PortPolicy::Everyone => Ok(None),
        PortPolicy::Rules(_) if local.datapath == NodeDatapath::Ipvs => {
            Err("rules in DOCKER-USER, which are not translated for IPVS".into())
        }
        PortPolicy::Rules(policy) => Ok(Some(policy)),
        PortPolicy::Inexpressible(rule) => Err(rule),
    }
}
