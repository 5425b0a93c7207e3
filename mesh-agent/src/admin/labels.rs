//! What of the mesh's labels an operator has to know: from the agent's view. Pure.

use super::View;
use crate::model::{NodeDatapath, Service};

/// The labels of services and nodes that have an invalid value, and those that this node's data path does not
/// apply; a line each.
#[must_use]
pub(crate) fn ignored_labels(view: &View) -> Vec<String> {
    let cluster = &view.source.cluster;
    let services = cluster.services.values();
    let invalid = services.flat_map(|service| &service.invalid_labels);
    let of_nodes = cluster.nodes.values().flat_map(|node| &node.invalid_labels);
    let unapplied = cluster
        .services
        .values()
        .flat_map(|service| unapplied(view, service));
    invalid.chain(of_nodes).cloned().chain(unapplied).collect()
}

/// What the labels ask for that does not hold.
fn unapplied(view: &View, service: &Service) -> Vec<String> {
    let balance = service.balance;
    let slow_start = (balance.slow_start.is_some() && balance.slow_start().is_none()).then(|| {
        format!(
            "label mesh.slow-start of service {} does not hold with mesh.scheduler=mh or mesh.affinity: each step \
             would move clients",
            service.name
        )
    });
    slow_start
        .into_iter()
        .chain(unapplied_by_ipvs(view, service))
        .collect()
}

/// What the labels ask for that IPVS has not.
fn unapplied_by_ipvs(view: &View, service: &Service) -> Vec<String> {
    if view.datapath != NodeDatapath::Ipvs {
        return Vec::new();
    }
    let algorithm = service.balance.algorithm;
    let scheduler = (algorithm != algorithm.in_ipvs()).then(|| {
        format!(
            "label mesh.scheduler={} of service {} does not hold on IPVS, which has no such scheduler: {} is used",
            algorithm.name(),
            service.name,
            algorithm.in_ipvs().name()
        )
    });
    // Its time-outs are the node's, for all services.
    let line = |label: &str| {
        format!(
            "label {label} of service {} does not hold on IPVS, whose time-outs are the node's (ipvsadm --set)",
            service.name
        )
    };
    let tcp = service.idle.tcp.map(|_| line("mesh.idle-timeout"));
    let udp = service.idle.udp.map(|_| line("mesh.udp-timeout"));
    scheduler.into_iter().chain(tcp).chain(udp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::view::fixture,
        model::{Algorithm, Cluster, IdleLimits},
    };

    #[test]
    fn invalid_labels_of_services_and_nodes_are_listed() {
        let (mut view, _) = fixture::two_nodes();
        let mut cluster = Cluster::clone(&view.source.cluster);
        let web = cluster.services.get_mut("web-id").unwrap();
        web.invalid_labels = vec!["of web".to_owned()];
        let node = cluster.nodes.get_mut("id3").unwrap();
        node.invalid_labels = vec!["of n3".to_owned()];
        view.source.cluster = cluster.into();
        assert_eq!(ignored_labels(&view), ["of web", "of n3"]);
    }

    #[test]
    fn a_slow_start_is_listed_where_a_hash_chooses() {
        let (mut view, _) = fixture::two_nodes();
        for (algorithm, affinity, count) in [
            (Algorithm::RoundRobin, None, 0),
            (Algorithm::Maglev, None, 1),
            (Algorithm::RoundRobin, Some(60), 1),
        ] {
            let mut cluster = Cluster::clone(&view.source.cluster);
            let balance = &mut cluster.services.get_mut("web-id").unwrap().balance;
            (balance.algorithm, balance.affinity, balance.slow_start) = (algorithm, affinity, Some(30));
            view.source.cluster = cluster.into();
            assert_eq!(ignored_labels(&view).len(), count, "{algorithm:?} {affinity:?}");
        }
    }

    #[test]
    fn a_balancing_algorithm_that_ipvs_has_not_is_listed_with_the_one_in_its_stead() {
        let (mut view, _) = fixture::two_nodes();
        view.datapath = NodeDatapath::Ipvs;
        for algorithm in Algorithm::ALL {
            let mut cluster = Cluster::clone(&view.source.cluster);
            cluster.services.get_mut("web-id").unwrap().balance.algorithm = algorithm;
            view.source.cluster = cluster.into();
            let expected = match algorithm {
                Algorithm::Random => vec![
                    "label mesh.scheduler=random of service web does not hold on IPVS, which has no such scheduler: \
                     wrr is used",
                ],
                _ => vec![],
            };
            assert_eq!(ignored_labels(&view), expected);
        }
    }

    #[test]
    fn time_outs_are_listed_where_the_data_path_is_ipvs() {
        let (mut view, _) = fixture::two_nodes();
        let mut cluster = Cluster::clone(&view.source.cluster);
        cluster.services.get_mut("web-id").unwrap().idle = IdleLimits {
            tcp: Some(60),
            udp: Some(10),
        };
        view.source.cluster = cluster.into();
        assert_eq!(ignored_labels(&view), [""; 0]);
        view.datapath = NodeDatapath::Ipvs;
        assert_eq!(
            ignored_labels(&view),
            ["idle", "udp"].map(|label| format!(
                "label mesh.{label}-timeout of service web does not hold on IPVS, whose time-outs are the node's \
                 (ipvsadm --set)"
            ))
        );
    }
}
