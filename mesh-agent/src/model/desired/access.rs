//! Who may come in to a published port of this node, and where: from the firewall of the host and the labels
//! of the service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    published::{closed, interface_policy},
    types::ServiceKey,
};
use crate::model::{Ingress, Local, Node, NodeDatapath, PortPolicy, Prefix, Service, SourcePolicy};

/// Who may come in, and where.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Who may; `None` for everyone.
    pub(super) policy: Option<Arc<SourcePolicy>>,
    /// The addresses at which no one may.
    pub(super) closed: BTreeSet<Ipv4Addr>,
}

/// The access to a published port, `of_node` being whom the node's own policy lets in; or the rule for which
/// the port is left to Docker's mesh; `addresses` are those of the node, as frontends have them and as they
/// are. Packets to IPVS do not pass DOCKER-USER, and neither its rules nor
/// labels are translated for it.
pub(super) fn access(
    local: &Local,
    own: Option<&Node>,
    key: ServiceKey,
    service: &Service,
    of_node: Option<Arc<SourcePolicy>>,
    addresses: &BTreeMap<Ipv4Addr, Prefix>,
    combined: &mut Combined,
) -> Result<Access, Arc<str>> {
    let of_host = host_policy(local, key)?;
    let of_clients = (!service.clients.are_all()).then(|| service.clients.rules());
    let of_interfaces = interface_policy(&service.publish_on, &local.uplinks);
    let closed = closed(&service.publish_on, &local.node, own, addresses);
    if local.datapath == NodeDatapath::Ipvs {
        if of_node.is_some() {
            return Err("the node's own rules (setting policy), which do not hold on IPVS".into());
        }
        if of_clients.is_some() {
            return Err("its labels mesh.allow and mesh.deny, which do not hold on IPVS".into());
        }
        if of_interfaces.is_some() || !closed.is_empty() {
            return Err("its label mesh.publish-on, which does not hold on IPVS".into());
        }
        if service.limits.refuse() {
            return Err("its limits of new connections, which do not hold on IPVS".into());
        }
    }
    let of_clients = of_clients.and_then(|rules| SourcePolicy::new([(Ingress::Any, rules)]));
    let of_labels = SourcePolicy::both(of_clients, of_interfaces).map(Arc::new);
    let policy = both(combined.both(of_host, of_node), of_labels);
    Ok(Access { policy, closed })
}

/// What the host's firewall and the node's policy are together, for each pair of them: many services have the
/// same, which can be of thousands of rules.
#[derive(Debug, Default)]
pub(super) struct Combined {
    /// By their locations in memory. Both outlive this.
    known: BTreeMap<[usize; 2], Shared>,
}

type Shared = Option<Arc<SourcePolicy>>;

impl Combined {
    fn both(&mut self, of_host: Shared, of_node: Shared) -> Shared {
        let location = |policy: &Shared| policy.as_ref().map_or(0, |policy| Arc::as_ptr(policy) as usize);
        let locations = [&of_host, &of_node].map(location);
        let combine = || both(of_host, of_node);
        self.known.entry(locations).or_insert_with(combine).clone()
    }
}

fn both(one: Shared, other: Shared) -> Shared {
    match (one, other) {
        (Some(one), Some(other)) => {
            let [one, other] = [one, other].map(Arc::unwrap_or_clone);
            SourcePolicy::both(Some(one), Some(other)).map(Arc::new)
        }
        (one, other) => one.or(other),
    }
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
