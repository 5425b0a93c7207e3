//! Replicas that fail their check.

use std::time::Duration;

use super::*;
use crate::model::{Checks, HealthCheck, HealthProbe, desired::failing_open};

fn checked() -> (Cluster, Local) {
    let (mut cluster, local) = pair();
    cluster.services.get_mut("s1").unwrap().health = Some(HealthCheck {
        probe: HealthProbe::Tcp,
        port: 80,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        fall: 3,
        rise: 2,
    });
    (cluster, local)
}

/// The replicas that take new flows, and the services that all of whose replicas fail.
fn found(cluster: &Cluster, local: &Local) -> (Vec<BackendKey>, Vec<ServiceKey>) {
    let desired = desired(cluster, local, SERVICE_ADDRESS);
    assert!(
        !desired.frontends.is_empty(),
        "the service is answered in any case"
    );
    assert_eq!(desired.backends.len(), 2, "each replica keeps its flows");
    let checks = Checks {
        cluster,
        own: &local.node,
        failed: &local.failed,
    };
    let open = failing_open(&desired, checks);
    (desired.services[&WEB].active.clone(), open)
}

fn fail_there(cluster: &mut Cluster, task: &str) {
    let failed = &mut cluster.nodes.get_mut("there").unwrap().failed;
    failed.insert(task.to_owned(), "connection refused");
}

#[test]
fn a_replica_that_fails_its_check_gets_no_new_flows_wherever_it_runs() {
    let (mut cluster, mut local) = checked();
    fail_there(&mut cluster, "t2");
    assert_eq!(found(&cluster, &local), (vec![key(11)], vec![]));

    let (cluster, _) = checked();
    local.failed.insert("t1".to_owned(), "HTTP status 500");
    assert_eq!(found(&cluster, &local), (vec![key(12)], vec![]));
}

#[test]
fn a_replica_that_no_bridge_leads_to_is_no_backend_and_a_service_of_such_ones_is_left_to_docker() {
    let (mut cluster, mut local) = pair();
    let there = &mut cluster.nodes.get_mut("there").unwrap().failed;
    there.insert_out_of_reach("t2".to_owned());
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.services[&WEB].active, [key(11)]);
    assert_eq!(found.backends.len(), 1);
    assert!(!found.frontends.is_empty());

    local.containers.remove("t1");
    local.failed.insert_out_of_reach("t1".to_owned());
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(
        found.backends.is_empty() && found.frontends.is_empty(),
        "Docker's mesh answers"
    );
}

#[test]
fn when_all_replicas_fail_all_are_tried() {
    let (mut cluster, mut local) = checked();
    fail_there(&mut cluster, "t2");
    local.failed.insert("t1".to_owned(), "HTTP status 500");
    assert_eq!(found(&cluster, &local), (vec![key(11), key(12)], vec![WEB]));
    // A replica that is drained as well is no choice.
    local.drained.tasks.insert("t1".to_owned());
    assert_eq!(found(&cluster, &local), (vec![key(12)], vec![WEB]));
}

#[test]
fn a_node_speaks_for_its_own_replicas_only_and_while_the_label_is_there() {
    let (mut cluster, mut local) = checked();
    fail_there(&mut cluster, "t1");
    local.failed.insert("t2".to_owned(), "connection refused");
    assert_eq!(found(&cluster, &local), (vec![key(11), key(12)], vec![]));

    fail_there(&mut cluster, "t2");
    cluster.services.get_mut("s1").unwrap().health = None;
    assert_eq!(found(&cluster, &local), (vec![key(11), key(12)], vec![]));
}

#[test]
fn a_failed_replica_within_reach_is_better_than_one_on_a_silent_node() {
    let (cluster, mut local) = checked();
    local.silent.insert(cluster.nodes["there"].address);
    local.failed.insert("t1".to_owned(), "connection refused");
    assert_eq!(found(&cluster, &local), (vec![key(11)], vec![WEB]));
}
