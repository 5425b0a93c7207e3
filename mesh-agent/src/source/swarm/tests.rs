//! The snapshot that a real engine's lists make. The fixtures were recorded on a Swarm of two nodes with
//! dockerd
//! 20.10, just after `web` was scaled from six replicas to two, and trimmed.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{lists::Lists, next_revision};
use crate::model::{Algorithm, Balance, Cluster, NodeRole, Protocol, PublishedPort, TaskState};

const WEB: &str = "ebgqnbfxhz24xy4az6eh2zyt3";
const MANAGER: &str = "5edh6jqu57q0yxj0whueeglrr";
const WORKER: &str = "yaaqdtpkqyjx01mcsmbg16k32";

/// The recorded lists; tests change them.
struct Recorded {
    services: Value,
    tasks: Value,
    nodes: Value,
}

fn recorded() -> Recorded {
    let parse = |text| serde_json::from_str(text).unwrap();
    Recorded {
        services: parse(include_str!("fixtures/services.json")),
        tasks: parse(include_str!("fixtures/tasks.json")),
        nodes: parse(include_str!("fixtures/nodes.json")),
    }
}

#[test]
fn replicas_of_all_services_are_counted_also_of_those_without_ports() {
    let of = |recorded: &Recorded| {
        let replicas = recorded.lists().replicas();
        let each = replicas.iter();
        each.map(|it| (it.service.clone(), it.wanted, it.running))
            .collect::<Vec<_>>()
    };
    let expected = |web_wanted, web_running| {
        vec![
            ("dyn".to_owned(), 2, 2),
            ("hostmode".to_owned(), 1, 1),
            ("web".to_owned(), web_wanted, web_running),
        ]
    };
    // Those that are still being removed do not count.
    let mut swarm = recorded();
    assert_eq!(of(&swarm), expected(2, 2));
    swarm.services[0]["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(5);
    let tasks = swarm.tasks.as_array_mut().unwrap();
    let running = |task: &&mut Value| task["ServiceID"] == WEB && task["DesiredState"] == "running";
    tasks.iter_mut().find(running).unwrap()["Status"]["State"] = json!("starting");
    assert_eq!(of(&swarm), expected(5, 1));
}

impl Recorded {
    fn lists(&self) -> Lists {
        Lists {
            services: serde_json::from_value(self.services.clone()).unwrap(),
            tasks: serde_json::from_value(self.tasks.clone()).unwrap(),
            nodes: serde_json::from_value(self.nodes.clone()).unwrap(),
        }
    }

    fn cluster(&self) -> Cluster {
        self.lists().cluster("cluster-1")
    }

    fn node(&mut self, id: &str) -> &mut Value {
        find(&mut self.nodes, id)
    }

    /// Removes every pending change: only tasks that run and should are left.
    fn settled(mut self) -> Self {
        let tasks = self.tasks.as_array_mut().unwrap();
        tasks.retain(|task| task["DesiredState"] == "running");
        self
    }
}

fn find<'a>(list: &'a mut Value, id: &str) -> &'a mut Value {
    let mut items = list.as_array_mut().unwrap().iter_mut();
    items.find(|item| item["ID"] == id).unwrap()
}

/// Names and states of the tasks of `web`.
fn web(cluster: &Cluster) -> Vec<(String, TaskState)> {
    let mut tasks: Vec<_> = cluster
        .tasks
        .values()
        .filter(|task| task.service == WEB)
        .map(|task| (task.name.clone(), task.state))
        .collect();
    tasks.sort_by(|one, other| one.0.cmp(&other.0));
    tasks
}

#[test]
fn running_tasks_are_active_leaving_ones_drain_and_others_are_left_out() {
    let expected = [
        ("web.1", TaskState::Active),
        ("web.2", TaskState::Active),
        ("web.3", TaskState::Draining),
    ];
    let seen = web(&recorded().cluster());
    assert_eq!(seen, expected.map(|(name, state)| (name.to_owned(), state)));
}

#[test]
fn a_task_has_its_ingress_address_node_and_slot() {
    let cluster = recorded().cluster();
    let task = &cluster.tasks["w43q8mm1b6y9sb7y856u12ehs"];
    assert_eq!(task.address, Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!((task.node.as_str(), task.slot), (MANAGER, Some(2)));
    let global = &cluster.tasks["fvwz67kd27yq5ixkdh3q0ys0a"];
    assert_eq!(
        (global.name.as_str(), global.slot),
        ("dyn.yaaqdtpkqyjx01mcsmbg16k32", None)
    );
}

#[test]
fn published_ports_include_those_that_docker_chose() {
    let cluster = recorded().cluster();
    let port = |protocol, published, target| PublishedPort {
        protocol,
        published,
        target,
    };
    let expected = [port(Protocol::Tcp, 9200, 80), port(Protocol::Udp, 5300, 53)];
    assert_eq!(cluster.services[WEB].ports, expected);
    let chosen = cluster
        .services
        .values()
        .find(|service| service.name == "dyn")
        .unwrap();
    assert_eq!(chosen.ports, [port(Protocol::Tcp, 30000, 80)]);
}

#[test]
fn services_that_publish_in_host_mode_are_left_out_with_their_tasks() {
    let cluster = recorded().cluster();
    assert!(
        cluster
            .services
            .values()
            .all(|service| service.name != "hostmode")
    );
    assert!(
        cluster
            .tasks
            .values()
            .all(|task| cluster.services.contains_key(&task.service))
    );
}

#[test]
fn nodes_have_role_address_and_readiness() {
    let mut recorded = recorded();
    recorded.node(WORKER)["Status"]["State"] = json!("down");
    let cluster = recorded.cluster();
    let (manager, worker) = (&cluster.nodes[MANAGER], &cluster.nodes[WORKER]);
    assert_eq!(manager.address, Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!((manager.role, manager.ready), (NodeRole::Manager, true));
    assert_eq!((worker.role, worker.ready), (NodeRole::Worker, false));
}

#[test]
fn node_that_has_not_reported_to_a_new_leader_yet_stays_ready() {
    let mut recorded = recorded();
    for state in ["unknown", "disconnected"] {
        recorded.node(WORKER)["Status"]["State"] = json!(state);
        assert!(recorded.cluster().nodes[WORKER].ready, "{state}");
    }
}

#[test]
fn a_manager_without_a_listed_address_has_the_advertised_one() {
    let mut recorded = recorded();
    recorded.node(MANAGER)["Status"]["Addr"] = json!("0.0.0.0");
    assert_eq!(
        recorded.cluster().nodes[MANAGER].address,
        Ipv4Addr::new(192, 0, 2, 1)
    );
}

#[test]
fn tasks_of_unknown_nodes_are_left_out() {
    let mut recorded = recorded();
    recorded
        .nodes
        .as_array_mut()
        .unwrap()
        .retain(|node| node["ID"] == MANAGER);
    assert_eq!(
        web(&recorded.cluster()),
        [("web.2".to_owned(), TaskState::Active)]
    );
}

#[test]
fn unknown_states_and_absent_fields_are_tolerated() {
    let mut recorded = recorded();
    let task = find(&mut recorded.tasks, "w43q8mm1b6y9sb7y856u12ehs");
    task["Status"]["State"] = json!("hibernating");
    task["NetworksAttachments"] = Value::Null;
    find(&mut recorded.services, WEB)["Endpoint"]["Ports"][1]["Protocol"] = json!("sctp");
    let cluster = recorded.cluster();
    assert!(!cluster.tasks.contains_key("w43q8mm1b6y9sb7y856u12ehs"));
    assert_eq!(cluster.services[WEB].ports.len(), 1);
}

#[test]
fn the_epoch_is_the_version_of_the_newest_object() {
    let mut recorded = recorded();
    let recorded_epoch = recorded.lists().epoch();
    assert!(recorded_epoch > 0);
    recorded.node(WORKER)["Version"]["Index"] = json!(recorded_epoch + 7);
    assert_eq!(recorded.lists().epoch(), recorded_epoch + 7);
    recorded.node(WORKER).as_object_mut().unwrap().remove("Version");
    assert_eq!(recorded.lists().epoch(), recorded_epoch);
}

#[test]
fn objects_with_an_empty_id_are_left_out() {
    let mut recorded = recorded();
    recorded.node(WORKER)["ID"] = json!("");
    let cluster = recorded.cluster();
    assert_eq!(cluster.nodes.keys().collect::<Vec<_>>(), [MANAGER]);
}

#[test]
fn cluster_converges_while_tasks_come_and_go() {
    assert!(recorded().lists().converging());
    assert!(!recorded().settled().lists().converging());
}

#[test]
fn cluster_converges_while_replicas_are_missing_or_an_update_runs() {
    let mut missing = recorded().settled();
    find(&mut missing.services, WEB)["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(5);
    assert!(missing.lists().converging());
    let mut updating = recorded().settled();
    find(&mut updating.services, WEB)["UpdateStatus"] = json!({"State": "updating"});
    assert!(updating.lists().converging());
}

#[test]
fn tasks_on_a_node_that_is_down_do_not_count_as_converging() {
    let mut recorded = recorded();
    let tasks = recorded.tasks.as_array_mut().unwrap();
    tasks.retain(|task| task["Status"]["State"] == "running");
    assert!(recorded.lists().converging());
    recorded.node(WORKER)["Status"]["State"] = json!("down");
    assert!(!recorded.lists().converging());
}

#[test]
fn a_task_of_a_service_that_is_not_listed_yet_is_noticed() {
    let mut recorded = recorded();
    assert!(!recorded.lists().names_unknown_service());
    recorded
        .services
        .as_array_mut()
        .unwrap()
        .retain(|service| service["ID"] != WEB);
    assert!(recorded.lists().names_unknown_service());
}

#[test]
fn revisions_keep_growing_across_restarts_of_the_agent() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let first = next_revision(0, start);
    // A thousand changes within a second, then a restart.
    let last = (0..999).fold(first, |revision, _| next_revision(revision, start));
    assert!(next_revision(0, start + Duration::from_secs(1)) > last);
}

#[test]
fn labels_set_a_services_balancing_and_a_nodes_weight() {
    let mut recorded = recorded();
    find(&mut recorded.services, WEB)["Spec"]["Labels"] =
        json!({"mesh.scheduler": "wrr", "mesh.affinity": "60", "other": "x"});
    recorded.node(WORKER)["Spec"]["Labels"] = json!({"mesh.weight": "7"});
    let cluster = recorded.cluster();
    let expected = Balance {
        algorithm: Algorithm::WeightedRoundRobin,
        affinity: Some(60),
        ..Balance::default()
    };
    assert_eq!(cluster.services[WEB].balance, expected);
    assert_eq!(cluster.nodes[WORKER].weight, 7);
    assert!(recorded.lists().label_errors().is_empty());
}

#[test]
fn an_invalid_label_is_reported_and_changes_nothing() {
    let mut recorded = recorded();
    let before = recorded.cluster();
    find(&mut recorded.services, WEB)["Spec"]["Labels"] = json!({"mesh.scheduler": "best"});
    recorded.node(WORKER)["Spec"]["Labels"] = json!({"mesh.weight": "lots"});
    let mut after = recorded.cluster();
    let service = std::mem::take(&mut after.services.get_mut(WEB).unwrap().invalid_labels);
    let node = std::mem::take(&mut after.nodes.get_mut(WORKER).unwrap().invalid_labels);
    assert!(service[0].contains("mesh.scheduler=best") && node[0].contains("mesh.weight=lots"));
    assert_eq!(after, before);
    assert_eq!(recorded.lists().label_errors().len(), 2);
}
