//! Which tasks get new flows, and which services are yielded.

use proptest::{collection, prelude::*, sample::select};

use super::*;
use crate::model::{Drained, NoHook};

const KINDS: [NodeDatapath; 5] = [
    NodeDatapath::Unknown,
    NodeDatapath::None,
    NodeDatapath::Leaving,
    NodeDatapath::Ebpf,
    NodeDatapath::Ipvs,
];

#[test]
fn tasks_of_a_node_that_is_not_ready_are_no_backends() {
    let (mut cluster, local) = pair();
    cluster.nodes.get_mut("there").unwrap().ready = false;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11)]);
    assert!(!desired.backends.contains_key(&key(12)));
    assert_eq!(desired.peers.len(), 1, "its replies in flight are still accepted");
}

#[test]
fn flows_go_on_to_a_node_that_managers_do_not_hear_of_while_its_data_path_answers() {
    let (mut cluster, mut local) = pair();
    let there = cluster.nodes["there"].address;
    cluster.nodes.get_mut("there").unwrap().ready = false;
    local.answered.insert(there);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert_eq!(found.backends[&key(12)].state, BackendState::Draining);
    local.silent.insert(there);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(!found.backends.contains_key(&key(12)));
}

#[test]
fn tasks_on_nodes_without_a_data_path_of_this_kind_are_no_backends() {
    for kind in [NodeDatapath::Unknown, NodeDatapath::None, NodeDatapath::Ipvs] {
        let (mut cluster, local) = pair();
        cluster.nodes.get_mut("there").unwrap().datapath = kind;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(desired.services[&WEB].active, [key(11)], "{kind:?}");
        assert!(!desired.backends.contains_key(&key(12)), "{kind:?}");
        assert_eq!(
            desired.peers.len(),
            1,
            "{kind:?}: packets that it still sends are accepted"
        );
    }
}

#[test]
fn a_data_path_that_answers_probes_is_sent_to_before_it_is_announced() {
    let (mut cluster, mut local) = pair();
    let announced = desired(&cluster, &local, SERVICE_ADDRESS);
    local.answered.insert(cluster.nodes["there"].address);
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Unknown;
    assert_eq!(desired(&cluster, &local, SERVICE_ADDRESS), announced);

    // What is announced is worth more: the programs may be about to go.
    for kind in [NodeDatapath::None, NodeDatapath::Leaving, NodeDatapath::Ipvs] {
        cluster.nodes.get_mut("there").unwrap().datapath = kind;
        let found = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(found.services[&WEB].active, [key(11)], "{kind:?}");
    }
    // An answer proves the same on IPVS, and nothing where it is another kind's.
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Unknown;
    local.datapath = NodeDatapath::Ipvs;
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11), key(12)]);
    local.forget_probes();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
}

#[test]
fn a_node_without_an_announcement_that_has_fallen_silent_keeps_its_flows() {
    let (mut cluster, mut local) = pair();
    let there = cluster.nodes["there"].address;
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Unknown;
    local.answered.insert(there);
    local.silent.insert(there);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert_eq!(found.backends[&key(12)].state, BackendState::Draining);
}

#[test]
fn nothing_is_sent_by_an_interface_without_a_hook() {
    let (mut cluster, mut local) = pair();
    let no_hook = NoHook {
        interface: "wg0".into(),
        reason: "no MAC address".into(),
    };
    local.without_hook.insert(Ipv4Addr::new(192, 168, 0, 2), no_hook);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert!(!found.backends.contains_key(&key(12)));

    cluster.tasks.remove("t1");
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(
        found.frontends.is_empty(),
        "the service is left to whatever else answers"
    );
}

#[test]
fn nodes_of_the_other_kind_send_to_each_other_as_well() {
    let (mut cluster, mut local) = pair();
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Ipvs;
    local.datapath = NodeDatapath::Ipvs;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
}

#[test]
fn tasks_of_a_leaving_node_keep_their_flows_and_get_no_new_ones() {
    let (mut cluster, local) = pair();
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::Leaving;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11)]);
    let backend = &desired.backends[&key(12)];
    assert_eq!((backend.state, backend.weight), (BackendState::Draining, 0));
}

#[test]
fn a_leaving_node_goes_on_with_its_own_replicas() {
    let (mut cluster, local) = pair();
    cluster.nodes.get_mut("here").unwrap().datapath = NodeDatapath::Leaving;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
}

#[test]
fn a_service_that_cannot_be_reached_from_here_is_left_to_whatever_else_answers() {
    for kind in [
        NodeDatapath::Unknown,
        NodeDatapath::None,
        NodeDatapath::Leaving,
        NodeDatapath::Ipvs,
    ] {
        let (mut cluster, local) = pair();
        cluster.tasks.remove("t1");
        cluster.nodes.get_mut("there").unwrap().datapath = kind;
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        assert!(desired.frontends.is_empty(), "{kind:?}");
        assert!(desired.services[&WEB].active.is_empty(), "{kind:?}");
        let kept = usize::from(kind == NodeDatapath::Leaving);
        assert_eq!(
            desired.backends.len(),
            kept,
            "{kind:?}: flows end with the node's data path"
        );
    }
}

#[test]
fn a_service_whose_only_task_has_no_container_yet_waits_for_it() {
    let (mut cluster, mut local) = pair();
    cluster.tasks.remove("t2");
    local.containers.clear();
    assert!(desired(&cluster, &local, SERVICE_ADDRESS).frontends.is_empty());
}

#[test]
fn a_port_of_a_service_that_is_yielded_goes_to_no_other_service() {
    let (mut cluster, local) = pair();
    cluster.nodes.get_mut("there").unwrap().datapath = NodeDatapath::None;
    cluster.tasks.remove("t1");
    cluster.services.insert("s2".into(), service("intruder", 9200));
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].name, "web");
    assert!(desired.frontends.is_empty());
}

#[test]
fn a_node_that_is_leaving_keeps_its_flows_and_opens_no_new_ones() {
    let (cluster, mut local) = pair();
    let before = desired(&cluster, &local, SERVICE_ADDRESS);
    local.leaving = true;
    let after = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(after.frontends.is_empty());
    let frontends = before.frontends.clone();
    assert_eq!(Desired { frontends, ..after }, before);
}

#[test]
fn a_silent_node_gets_no_new_flows_unless_there_is_no_other() {
    let (mut cluster, mut local) = pair();
    cluster.nodes.get_mut("there").unwrap().silent = true;
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    let there = &found.backends[&key(12)];
    assert_eq!((there.state, there.weight), (BackendState::Draining, 0));

    // What other nodes report about this node does not matter here.
    cluster.nodes.get_mut("here").unwrap().silent = true;
    assert_eq!(
        desired(&cluster, &local, SERVICE_ADDRESS).services,
        found.services
    );

    local.containers.clear();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(12)], "it is all there is");
}

#[test]
fn a_peer_that_does_not_answer_this_node_gets_no_new_flows_unless_there_is_no_other() {
    let (mut cluster, mut local) = pair();
    local.silent.insert(cluster.nodes["there"].address);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert_eq!(
        found.backends[&key(12)].state,
        BackendState::Draining,
        "it keeps its flows"
    );
    // The managers' view comes to the same.
    cluster.nodes.get_mut("there").unwrap().silent = true;
    assert_eq!(desired(&cluster, &local, SERVICE_ADDRESS), found);
    local.containers.clear();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(12)], "it is all there is");
}

#[test]
fn flows_to_a_lost_peer_are_given_up_unless_there_is_no_other() {
    let (cluster, mut local) = pair();
    let there = cluster.nodes["there"].address;
    local.silent.insert(there);
    local.lost.insert(there);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert!(
        !found.backends.contains_key(&key(12)),
        "so that its flows are refused"
    );
    assert!(found.peers.contains_key(&there));
    local.containers.clear();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(12)], "it is all there is");
}

#[test]
fn own_replicas_stay_when_the_managers_do_not_see_this_node() {
    let (mut cluster, local) = pair();
    cluster.nodes.get_mut("here").unwrap().ready = false;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(desired.services[&WEB].active, [key(11), key(12)]);
}

/// Here, the node's own record counts, which the managers repeat later.
#[test]
fn drained_replicas_keep_their_flows_wherever_they_run() {
    let of = |drained: &Desired| {
        let states = drained.backends.values();
        states.map(|backend| backend.state).collect::<Vec<_>>()
    };
    let (mut cluster, mut local) = pair();
    local.drained.tasks = ["t1".to_owned()].into();
    let own = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(own.services[&WEB].active, [key(12)]);
    assert_eq!(of(&own), [BackendState::Draining, BackendState::Active]);

    local.drained = Drained::default();
    cluster.nodes.get_mut("here").unwrap().drained.node = true;
    cluster.nodes.get_mut("there").unwrap().drained.node = true;
    let other = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(other.services[&WEB].active, [key(11)]);
    assert_eq!(of(&other), [BackendState::Active, BackendState::Draining]);
}

/// Docker's mesh would still send there.
#[test]
fn a_service_whose_replicas_are_all_drained_is_refused_and_not_left_to_others() {
    let (mut cluster, mut local) = pair();
    local.drained.node = true;
    cluster.nodes.get_mut("there").unwrap().drained.node = true;
    let desired = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(desired.services[&WEB].active.is_empty());
    assert_eq!(desired.frontends.len(), 2);
}

proptest! {
    /// For any data paths and any tasks: new flows go only to nodes that understand them, and a port is
    /// answered only if a backend can be reached, or if there is none in the cluster.
    #[test]
    fn new_flows_go_only_where_they_are_understood(
        own in select([NodeDatapath::Ebpf, NodeDatapath::Ipvs].as_slice()),
        kinds in collection::vec((select(KINDS.as_slice()), any::<bool>(), any::<bool>()), 3),
        tasks in collection::vec((0..4_usize, 0..2_usize, any::<bool>(), any::<bool>()), 0..8),
    ) {
        let names = ["here", "n1", "n2", "n3"];
        let mut cluster = Cluster {
            services: [("s0".into(), service("a", 9200)), ("s1".into(), service("b", 9300))].into(),
            ..Cluster::default()
        };
        cluster.nodes.insert("here".into(), node(1));
        for (index, (datapath, ready, silent)) in kinds.into_iter().enumerate() {
            let node = Node { datapath, ready, silent, ..node(2 + index as u8) };
            cluster.nodes.insert(names[index + 1].into(), node);
        }
        let mut local = Local { node: "here".into(), datapath: own, ..Local::default() };
        local.addresses.insert(Ipv4Addr::new(192, 168, 0, 1));
        for (index, (node, service, active, found)) in tasks.into_iter().enumerate() {
            let last = 10 + index as u8;
            let mut task = task(["s0", "s1"][service], None, names[node], last);
            if !active {
                task.state = TaskState::Draining;
            }
            let id = format!("t{index}");
            if node == 0 && found {
                local.containers.insert(id.clone(), container(last));
            }
            cluster.tasks.insert(id, task);
        }
        let desired = desired(&cluster, &local, SERVICE_ADDRESS);
        for (key, backend) in &desired.backends {
            let node = &cluster.nodes[&backend.node];
            if backend.node != "here" && backend.state == BackendState::Active {
                prop_assert!(node.ready && node.datapath == own, "{backend:?} on {node:?}");
                let audible = |other: &Backend| other.node == "here" || !cluster.nodes[&other.node].silent;
                let other = desired.backends.iter().find(|(other_key, other)| {
                    other_key.service == key.service && other.state == BackendState::Active && audible(other)
                });
                prop_assert!(audible(backend) || other.is_none(), "{backend:?} beside {other:?}");
            }
        }
        for (id, port) in [("s0", 9200), ("s1", 9300)] {
            let key = ServiceKey { protocol: Protocol::Tcp, port };
            let meant = cluster.tasks.values().any(|task| task.service == id && task.state == TaskState::Active);
            let answered = desired.frontends.iter().filter(|frontend| frontend.service == key).count();
            let reached = !desired.services[&key].active.is_empty();
            prop_assert_eq!(answered, if reached || !meant { 2 } else { 0 }, "{}", id);
        }
    }
}

#[test]
fn a_replica_that_has_drained_for_as_long_as_it_may_is_no_backend() {
    let (mut cluster, mut local) = pair();
    let mut tasks = cluster.tasks.iter_mut();
    let (id, task) = tasks.find(|(_, task)| task.node == "there").unwrap();
    task.state = TaskState::Draining;
    let id = id.clone();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.backends[&key(12)].state, BackendState::Draining);
    local.drained_out.insert(id);
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(!found.backends.contains_key(&key(12)));
    assert_eq!(found.services[&WEB].active, [key(11)]);
}
