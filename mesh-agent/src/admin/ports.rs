//! Published ports that this node does not serve, or not alone: a line each. Pure.

use super::View;
use crate::model::ServiceKey;

/// The services whose ports the cluster itself needs, and those that something else of this node serves too.
pub(super) fn port_lines(view: &View) -> Vec<String> {
    let name = |key: &ServiceKey| {
        let service = view.desired.services.get(key);
        service.map_or("a service", |service| service.name.as_str())
    };
    let left = view.desired.left.iter().map(|(key, purpose)| {
        format!(
            "{} ({key}) is left to Docker's own mesh: the port is that of {purpose}; publish another one",
            name(key)
        )
    });
    let node = view.source.cluster.nodes.get(&view.node);
    let node = node.map_or(view.node.as_str(), |node| node.hostname.as_str());
    let occupied = view.occupied_ports.iter().map(|port| {
        format!(
            "{} on {node} serves {} as well, which {} publishes: clients that dial this node reach the service",
            port.owner,
            port.service,
            name(&port.service)
        )
    });
    left.chain(occupied).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::{routes::routes, status::status, view::fixture},
        model::{OccupiedPort, Protocol},
    };

    const WEB: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    #[test]
    fn a_port_that_the_cluster_needs_is_named_with_its_service_and_purpose() {
        let (mut view, counters) = fixture::two_nodes();
        let mut desired = (*view.desired).clone();
        desired
            .left
            .insert(WEB, "the mesh's feed (--feed-port)".to_owned());
        view.desired = desired.into();
        assert_eq!(
            status(&view, view.started).errors,
            [
                "ports: web (tcp/9200) is left to Docker's own mesh: the port is that of the mesh's feed (--feed-port); \
                 publish another one"
            ]
        );
        let rows = routes(&view, &counters).routes;
        let reason = &rows.iter().find(|row| row.service == "web").unwrap().reason;
        assert_eq!(reason, "the port is that of the mesh's feed (--feed-port)");
    }

    #[test]
    fn who_else_serves_a_published_port_is_named_with_the_node() {
        let (mut view, _) = fixture::two_nodes();
        view.occupied_ports = vec![OccupiedPort {
            service: WEB,
            owner: "process 812 (sshd)".to_owned(),
        }];
        assert_eq!(
            status(&view, view.started).errors,
            [
                "ports: process 812 (sshd) on n1 serves tcp/9200 as well, which web publishes: clients that dial this \
                 node reach the service"
            ]
        );
    }
}
