//! The desired data path of a node of two, and the services that it answers.

use std::{net::Ipv4Addr, sync::Arc};

use super::*;
use crate::model::{
    Attached, Balance, Cluster, Container, Ingress, Limits, Local, MacAddress, Node, NodeCondition,
    NodeDatapath, NodePolicy, NodeRole, NodeSubject, PortPolicies, PortPolicy, Protocol, PublishOn,
    PublishedPort, ReservedPort, Service, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts, Task,
    TaskState,
};

mod health;
mod ipv6;
mod reachability;

const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9200,
};

fn node(last: u8) -> Node {
    Node {
        datapath: NodeDatapath::Ebpf,
        ..Node::new(
            format!("host{last}"),
            Ipv4Addr::new(192, 168, 0, last),
            NodeRole::Worker,
        )
    }
}

fn service(name: &str, published: u16) -> Service {
    Service {
        name: name.into(),
        ports: vec![PublishedPort {
            protocol: Protocol::Tcp,
            published,
            target: 80,
        }],
        balance: Balance::default(),
        health: None,
        clients: crate::model::Clients::default(),
        idle: crate::model::IdleLimits::default(),
        publish_on: crate::model::PublishOn::default(),
        weights: Default::default(),
        drain_timeout: None,
        limits: Limits::default(),
        invalid_labels: Vec::new(),
    }
}

fn task(service: &str, slot: Option<u64>, node: &str, last: u8) -> Task {
    Task {
        service: service.into(),
        name: format!("{service}.{last}"),
        slot,
        node: node.into(),
        address: Ipv4Addr::new(10, 0, 0, last),
        state: TaskState::Active,
    }
}

fn container(last: u8) -> Container {
    Container {
        ingress_address: Ipv4Addr::new(10, 0, 0, last),
        address: Ipv4Addr::new(172, 18, 0, last),
        mac: MacAddress([2, 0, 0, 0, 0, last]),
        host_interface: 100 + u32::from(last),
        gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
    }
}

/// Two nodes, one service, one replica here (`t1`) and one there (`t2`).
fn pair() -> (Cluster, Local) {
    let cluster = Cluster {
        cluster_id: "cluster".into(),
        data_path_port: None,
        nodes: [("here".into(), node(1)), ("there".into(), node(2))].into(),
        services: [("s1".into(), service("web", 9200))].into(),
        tasks: [
            ("t1".into(), task("s1", Some(1), "here", 11)),
            ("t2".into(), task("s1", Some(2), "there", 12)),
        ]
        .into(),
    };
    let local = Local {
        node: "here".into(),
        datapath: NodeDatapath::Ebpf,
        addresses: [Ipv4Addr::new(192, 168, 0, 1)].into(),
        containers: [("t1".into(), container(11))].into(),
        ..Local::default()
    };
    (cluster, local)
}

fn attached(subnets: &[&str]) -> Attached {
    Attached {
        gateway: Ipv4Addr::new(172, 18, 0, 1),
        subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
    }
}

fn key(last: u8) -> BackendKey {
    BackendKey {
        service: WEB,
        address: Ipv4Addr::new(10, 0, 0, last),
    }
}

#[test]
fn a_port_that_the_cluster_needs_is_no_frontend_whatever_publishes_it() {
    let (cluster, mut local) = pair();
    let reserved = |protocol| ReservedPort {
        protocol,
        port: WEB.port,
        purpose: "the mesh's feed (--feed-port)".to_owned(),
    };
    local.reserved = vec![reserved(Protocol::Udp)];
    let other_protocol = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(!other_protocol.frontends.is_empty() && other_protocol.left.is_empty());
    local.reserved = vec![reserved(Protocol::Tcp)];
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(desired.frontends.is_empty(), "{:?}", desired.frontends);
    assert_eq!(
        desired.left,
        [(WEB, "the mesh's feed (--feed-port)".to_owned())].into()
    );
    assert_eq!(desired.services[&WEB].active.len(), 2, "open connections go on");
}

#[test]
fn the_hosts_firewall_gives_a_service_its_rules_or_leaves_it_to_docker() {
    let (cluster, mut local) = pair();
    let drop = SourceVerdicts::both(SourceVerdict::Drop);
    let rules = SourceRules::from([("192.0.2.7".parse().unwrap(), drop)]);
    let policy = SourcePolicy::new([(Ingress::Any, rules)]).map(Arc::new);
    let rules = PortPolicy::Rules(policy.clone().unwrap());
    local.host_firewall = Arc::new(PortPolicies::all(&rules));
    let translated = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(translated.services[&WEB].policy, policy);
    assert!(!translated.frontends.is_empty() && translated.inexpressible.is_empty());
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.frontends.is_empty() && on_ipvs.inexpressible.contains_key(&WEB));
    local.datapath = NodeDatapath::Ebpf;
    local.host_firewall = Arc::new(PortPolicies::all(&PortPolicy::Inexpressible("a rule".into())));
    let left = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(left.frontends.is_empty());
    assert_eq!(left.inexpressible, [(WEB, "a rule".into())].into());
}

#[test]
fn a_services_labels_say_who_may_come_in_beside_the_hosts_firewall() {
    let (mut cluster, mut local) = pair();
    let drop = SourceVerdicts::both(SourceVerdict::Drop);
    let rules = SourceRules::from([("192.0.2.7".parse().unwrap(), drop)]);
    let of_host = SourcePolicy::new([(Ingress::Any, rules)]).map(Arc::new).unwrap();
    local.host_firewall = Arc::new(PortPolicies::all(&PortPolicy::Rules(of_host)));
    for service in cluster.services.values_mut() {
        service.clients.allow = vec!["192.0.2.0/24".parse().unwrap()];
    }
    let on_ebpf = desired(&cluster, &local, SERVICE_ADDRESS);
    let policy = on_ebpf.services[&WEB].policy.clone().unwrap();
    let opening = |client: &str| policy.verdicts(Ingress::Any, client.parse().unwrap()).opening;
    assert_eq!(opening("192.0.2.8"), SourceVerdict::Accept);
    assert_eq!(opening("192.0.2.7"), SourceVerdict::Drop);
    assert_eq!(opening("198.51.100.7"), SourceVerdict::Drop);
    local.host_firewall = Arc::default();
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.frontends.is_empty() && on_ipvs.inexpressible[&WEB].contains("mesh.allow"));
}

#[test]
fn a_service_with_limits_of_new_connections_is_left_to_docker_on_ipvs() {
    let (mut cluster, mut local) = pair();
    for service in cluster.services.values_mut() {
        service.limits.max_new_per_source = Some(20);
    }
    let on_ebpf = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(on_ebpf.services[&WEB].limits.max_new_per_source, Some(20));
    assert!(!on_ebpf.frontends.is_empty());
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.frontends.is_empty() && on_ipvs.inexpressible[&WEB].contains("new connections"));
    // What is past a flood limit is not refused.
    for service in cluster.services.values_mut() {
        service.limits = Limits {
            flood: Some(1),
            ..Limits::default()
        };
    }
    assert!(!desired(&cluster, &local, SERVICE_ADDRESS).frontends.is_empty());
}

#[test]
fn the_nodes_own_policy_holds_beside_labels_and_the_hosts_firewall() {
    let (mut cluster, mut local) = pair();
    let rules = ["deny 9200/tcp from 192.0.2.7", "allow from 198.51.100.0/24"];
    local.policy = Arc::new(NodePolicy::new(
        rules.iter().map(|rule| rule.parse().unwrap()).collect(),
    ));
    let opening = |state: &Desired, client: &str| {
        let policy = state.services[&WEB].policy.as_ref().unwrap();
        policy.verdicts(Ingress::Any, client.parse().unwrap()).opening
    };
    let alone = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(opening(&alone, "192.0.2.7"), SourceVerdict::Drop);
    assert_eq!(opening(&alone, "192.0.2.8"), SourceVerdict::Accept);
    for service in cluster.services.values_mut() {
        service.clients.allow = vec!["192.0.2.0/24".parse().unwrap()];
    }
    let both = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(
        opening(&both, "192.0.2.7"),
        SourceVerdict::Drop,
        "a label opens nothing"
    );
    assert_eq!(
        opening(&both, "198.51.100.7"),
        SourceVerdict::Drop,
        "nor does the policy"
    );
    assert_eq!(opening(&both, "192.0.2.8"), SourceVerdict::Accept);
    for service in cluster.services.values_mut() {
        service.clients = Default::default();
    }
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.frontends.is_empty() && on_ipvs.inexpressible[&WEB].contains("setting policy"));
}

#[test]
fn a_service_is_closed_where_its_label_does_not_publish_it() {
    let (mut cluster, mut local) = pair();
    let own = Ipv4Addr::new(192, 168, 0, 1);
    let publish = |cluster: &mut Cluster, publish_on: PublishOn| {
        for service in cluster.services.values_mut() {
            service.publish_on = publish_on.clone();
        }
    };
    let elsewhere = PublishOn {
        addresses: vec!["10.0.0.0/8".parse().unwrap()],
        ..PublishOn::default()
    };
    publish(&mut cluster, elsewhere);
    let state = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(state.services[&WEB].closed, [own].into());
    assert_eq!(
        state.frontends.len(),
        2,
        "a port that is not the mesh's would be Docker's"
    );
    let condition = NodeCondition {
        subject: NodeSubject::Label("edge".to_owned()),
        equal: true,
        value: "true".to_owned(),
    };
    let edge = PublishOn {
        nodes: vec![condition],
        ..PublishOn::default()
    };
    publish(&mut cluster, edge);
    assert_eq!(
        desired(&cluster, &local, SERVICE_ADDRESS).services[&WEB].closed,
        [own].into()
    );
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.frontends.is_empty() && on_ipvs.inexpressible[&WEB].contains("mesh.publish-on"));
    let node = cluster.nodes.get_mut(&local.node).unwrap();
    node.labels.insert("edge".to_owned(), "true".to_owned());
    node.labels.insert("other".to_owned(), "x".to_owned());
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.services[&WEB].closed.is_empty() && on_ipvs.inexpressible.is_empty());
    cluster.forget_unnamed_labels();
    let labels = &cluster.nodes[&local.node].labels;
    assert_eq!(labels.keys().collect::<Vec<_>>(), ["edge"]);
}

#[test]
fn a_replica_is_local_here_and_remote_elsewhere() {
    let (cluster, local) = pair();
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
    assert_eq!(
        desired.backends[&key(11)].location,
        Location::Local(container(11))
    );
    assert_eq!(
        desired.backends[&key(12)].location,
        Location::Remote(Ipv4Addr::new(192, 168, 0, 2))
    );
    assert_eq!(desired.container_interfaces, [111].into());
    assert_eq!(desired.peers, [(Ipv4Addr::new(192, 168, 0, 2), None)].into());
    assert_eq!(desired.settings.node_address, Some(Ipv4Addr::new(192, 168, 0, 1)));
}

#[test]
fn the_service_address_answers_like_the_nodes_own() {
    let (cluster, local) = pair();
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    let answered: Vec<_> = desired
        .frontends
        .iter()
        .map(|frontend| frontend.address)
        .collect();
    assert_eq!(answered, [SERVICE_ADDRESS, Ipv4Addr::new(192, 168, 0, 1)]);
}

#[test]
fn a_draining_task_keeps_its_flows_and_gets_no_new_ones() {
    let (mut cluster, local) = pair();
    cluster.tasks.get_mut("t1").unwrap().state = TaskState::Draining;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(12)]);
    let backend = &desired.backends[&key(11)];
    assert_eq!((backend.state, backend.weight), (BackendState::Draining, 0));
    assert_eq!(desired.container_interfaces, [111].into());
}

#[test]
fn a_local_task_waits_for_its_container() {
    let (cluster, mut local) = pair();
    local.containers.clear();
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(12)]);
    assert!(desired.container_interfaces.is_empty());
}

#[test]
fn a_published_port_claimed_twice_stays_with_the_first_service() {
    let (mut cluster, local) = pair();
    cluster.services.insert("s2".into(), service("intruder", 9200));
    cluster
        .tasks
        .insert("t3".into(), task("s2", Some(1), "there", 13));
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].name, "web");
    assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
    assert!(!desired.backends.contains_key(&key(13)));
}

#[test]
fn tasks_of_a_global_service_are_backends_without_slot() {
    let (mut cluster, local) = pair();
    for task in cluster.tasks.values_mut() {
        task.slot = None;
    }
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active.len(), 2);
    assert!(desired.backends.values().all(|backend| backend.slot.is_none()));
}

#[test]
fn an_address_belongs_to_the_task_that_runs_rather_than_the_one_that_drains() {
    for (draining, active) in [("t0", "t9"), ("t9", "t0")] {
        let (mut cluster, local) = pair();
        cluster.tasks.clear();
        let running = task("s1", Some(1), "there", 12);
        cluster.tasks.insert(active.into(), running.clone());
        let leaving = Task {
            state: TaskState::Draining,
            ..running
        };
        cluster.tasks.insert(draining.into(), leaving);
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(12)]);
        assert_eq!(desired.backends[&key(12)].task, active);
    }
}

#[test]
fn a_service_without_tasks_is_answered_and_has_no_backends() {
    let (mut cluster, local) = pair();
    cluster.tasks.clear();
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(desired.services[&WEB].active.is_empty());
    assert_eq!(desired.frontends.len(), 2);
}

#[test]
fn clients_of_a_replicas_own_networks_are_masqueraded() {
    let (cluster, mut local) = pair();
    let check = |local: &Local, expected: &[(&str, [u8; 4])]| {
        let masquerades = desired(&cluster, local, SERVICE_ADDRESS).masquerades;
        let expected = expected.iter().map(|(clients, source)| {
            let clients = clients.parse().unwrap();
            (
                Masquerade {
                    interface: 111,
                    clients,
                },
                Ipv4Addr::from(*source),
            )
        });
        assert_eq!(masquerades, expected.collect());
    };
    check(&local, &[]);
    // As the node. A container of another task's is none of the mesh's.
    local
        .attached
        .insert(111, attached(&["10.0.0.0/24", "172.18.0.0/16"]));
    local.attached.insert(112, attached(&["10.0.0.0/24"]));
    let node = [192, 168, 0, 1];
    check(&local, &[("10.0.0.0/24", node), ("172.18.0.0/16", node)]);
    // Unless the replica would not answer the node's address either.
    local
        .attached
        .insert(111, attached(&["10.0.0.0/24", "192.168.0.0/20"]));
    let gateway = [172, 18, 0, 1];
    check(&local, &[("10.0.0.0/24", gateway), ("192.168.0.0/20", gateway)]);
}
