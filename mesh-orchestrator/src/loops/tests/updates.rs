//! Rolling updates, their failures and rollbacks.

use proptest::prelude::*;

use crate::{
    commands,
    loops::testing::{Cluster, replicas, spec},
    objects::{Task, TaskState, UpdateState},
};

/// A cluster with a running service that has the given update policy.
fn running(count: u32, policy: &serde_json::Value) -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.create(spec("web", |json| {
        replicas(count)(json);
        json["update_config"] = policy.clone();
        json["task_template"]["restart_policy"] = serde_json::json!({ "delay": "1s" });
    }));
    cluster.step();
    cluster.settle();
    cluster
}

fn image(name: &str) -> impl FnOnce(&mut serde_json::Value) {
    move |json| json["task_template"]["container_spec"]["image"] = name.into()
}

fn state(cluster: &Cluster) -> UpdateState {
    cluster.service("web").update_status.as_ref().unwrap().state
}

fn images(cluster: &Cluster) -> Vec<String> {
    let tasks = cluster.state().tasks().values().filter(|task| task.is_running());
    let mut images: Vec<String> = tasks.map(|task| task.spec.container_spec.image.clone()).collect();
    images.sort();
    images
}

/// Lets everything run while time passes in small steps.
fn play(cluster: &mut Cluster, seconds: u64) {
    for _ in 0..seconds {
        cluster.run_all();
        cluster.pass(1);
    }
    cluster.settle();
}

/// Lets the new tasks fail as soon as they have a node; the others stop and run as they should.
fn fail_new(cluster: &mut Cluster, image: &str) {
    let is_new = |task: &&Task| {
        task.is_live()
            && task.status.state.holds_resources()
            && task.spec.container_spec.image == image
            && task.desired != TaskState::Ready
    };
    let tasks: Vec<_> = cluster
        .state()
        .tasks()
        .values()
        .filter(is_new)
        .map(|task| task.id.clone())
        .collect();
    for task in tasks {
        cluster.observe(&task, TaskState::Failed);
    }
    let stopping: Vec<_> = cluster
        .state()
        .tasks()
        .values()
        .filter(|task| task.is_stopping())
        .map(|task| task.id.clone())
        .collect();
    for task in stopping {
        cluster.observe(&task, TaskState::Shutdown);
    }
    cluster.pass(1);
}

#[test]
fn stop_first_replaces_as_many_at_a_time_as_the_parallelism_allows() {
    let mut cluster = running(5, &serde_json::json!({ "parallelism": 2, "monitor": "0" }));
    cluster.update("web", image("nginx:2"));
    let mut least = 5;
    for _ in 0..40 {
        cluster.pass(1);
        least = least.min(cluster.running("web").len());
        cluster.run_all();
        least = least.min(cluster.running("web").len());
    }
    assert_eq!(least, 3);
    assert_eq!(state(&cluster), UpdateState::Completed);
    assert_eq!(images(&cluster), ["nginx:2"; 5]);
}

#[test]
fn start_first_keeps_all_slots_running() {
    let mut cluster = running(
        3,
        &serde_json::json!({ "parallelism": 1, "order": "start-first", "monitor": "0" }),
    );
    cluster.update("web", image("nginx:2"));
    for _ in 0..40 {
        cluster.pass(1);
        assert_eq!(cluster.running("web").len().min(3), 3);
        cluster.run_all();
        assert!(cluster.running("web").len() >= 3);
    }
    assert_eq!(state(&cluster), UpdateState::Completed);
    assert_eq!(images(&cluster), ["nginx:2"; 3]);
}

#[test]
fn slots_are_replaced_with_the_delay_between_them() {
    let mut cluster = running(
        3,
        &serde_json::json!({ "parallelism": 1, "delay": "10s", "monitor": "0" }),
    );
    cluster.update("web", image("nginx:2"));
    play(&mut cluster, 5);
    assert_eq!(
        images(&cluster)
            .iter()
            .filter(|image| *image == "nginx:2")
            .count(),
        1
    );
    play(&mut cluster, 10);
    assert_eq!(
        images(&cluster)
            .iter()
            .filter(|image| *image == "nginx:2")
            .count(),
        2
    );
    play(&mut cluster, 25);
    assert_eq!(state(&cluster), UpdateState::Completed);
}

#[test]
fn a_failure_pauses_the_update_and_names_the_task() {
    let mut cluster = running(3, &serde_json::json!({ "failure_action": "pause" }));
    cluster.update("web", image("bad"));
    cluster.step();
    (0..10).for_each(|_| fail_new(&mut cluster, "bad:latest"));
    assert_eq!(state(&cluster), UpdateState::Paused);
    let message = cluster
        .service("web")
        .update_status
        .as_ref()
        .unwrap()
        .message
        .clone();
    assert!(
        message.starts_with("update paused: set by the test (task ") && message.contains(" of web."),
        "{message}"
    );
    assert_eq!(cluster.running("web").len(), 2, "only the first slot was touched");
    // The next change by the user starts a new update.
    cluster.update("web", image("nginx:3"));
    play(&mut cluster, 30);
    assert_eq!(state(&cluster), UpdateState::Completed);
    assert_eq!(images(&cluster), ["nginx:3"; 3]);
}

#[test]
fn a_failure_rolls_back_to_the_previous_specification() {
    for order in ["stop-first", "start-first"] {
        let mut cluster = running(
            3,
            &serde_json::json!({ "failure_action": "rollback", "order": order }),
        );
        cluster.update("web", image("bad"));
        cluster.step();
        (0..5).for_each(|_| fail_new(&mut cluster, "bad:latest"));
        assert!(state(&cluster).is_rollback());
        play(&mut cluster, 30);
        assert_eq!(state(&cluster), UpdateState::RollbackCompleted, "{order}");
        assert_eq!(images(&cluster), ["nginx:latest"; 3]);
        assert_eq!(
            cluster.service("web").task_version,
            1,
            "tasks that were never replaced are current again"
        );
    }
}

#[test]
fn failures_within_the_ratio_are_allowed() {
    let policy =
        serde_json::json!({ "failure_action": "pause", "max_failure_ratio": 0.34, "order": "start-first" });
    let mut cluster = running(3, &policy);
    cluster.update("web", image("bad"));
    cluster.step();
    fail_new(&mut cluster, "bad:latest");
    play(&mut cluster, 30);
    assert_eq!(state(&cluster), UpdateState::Completed);
    let message = cluster
        .service("web")
        .update_status
        .as_ref()
        .unwrap()
        .message
        .clone();
    assert_eq!(message, "update completed; 1 of 3 failed");
}

#[test]
fn an_update_whose_tasks_fit_no_node_fails_instead_of_hanging() {
    let mut cluster = running(
        2,
        &serde_json::json!({ "order": "start-first", "progress_deadline": "30s" }),
    );
    cluster.update("web", |json| {
        json["task_template"]["resources"] =
            serde_json::json!({ "reservations": { "memory_bytes": 1_u64 << 40 } });
    });
    play(&mut cluster, 29);
    assert_eq!(state(&cluster), UpdateState::Updating);
    play(&mut cluster, 2);
    assert_eq!(state(&cluster), UpdateState::Paused);
    let message = cluster
        .service("web")
        .update_status
        .as_ref()
        .unwrap()
        .message
        .clone();
    assert!(
        message.starts_with("update paused: no suitable node (insufficient memory on 3 nodes) (web."),
        "{message}"
    );
    assert_eq!(cluster.running("web").len(), 2, "the old tasks stay");
}

#[test]
fn a_task_that_fails_during_an_update_is_replaced_with_its_own_specification() {
    let mut cluster = running(3, &serde_json::json!({ "delay": "60s" }));
    cluster.update("web", image("nginx:2"));
    play(&mut cluster, 3);
    let is_old = |task: &&Task| task.is_running() && task.spec_version == 1;
    let old = cluster.state().tasks().values().find(is_old).unwrap().id.clone();
    cluster.observe(&old, TaskState::Failed);
    play(&mut cluster, 3);
    assert_eq!(images(&cluster), ["nginx:2", "nginx:latest", "nginx:latest"]);
}

#[test]
fn a_change_that_does_not_affect_tasks_replaces_none() {
    let mut cluster = running(3, &serde_json::json!({}));
    let before = cluster.state().tasks().clone();
    cluster.update("web", |json| json["labels"] = serde_json::json!({ "a": "b" }));
    cluster.step();
    cluster.settle();
    assert_eq!(*cluster.state().tasks(), before);
    assert_eq!(cluster.service("web").version, 2);
}

#[test]
fn users_can_roll_back_and_forth() {
    let mut cluster = running(2, &serde_json::json!({}));
    assert!(commands::rollback_service(cluster.state(), &"web".into(), cluster.now).is_err());
    cluster.update("web", image("nginx:2"));
    play(&mut cluster, 20);
    for expected in ["nginx:latest", "nginx:2"] {
        cluster.make(commands::rollback_service(cluster.state(), &"web".into(), cluster.now).unwrap());
        play(&mut cluster, 20);
        assert_eq!(images(&cluster), [expected; 2]);
        assert_eq!(state(&cluster), UpdateState::RollbackCompleted);
    }
}

#[test]
fn an_update_must_name_the_version_that_was_read() {
    let cluster = running(1, &serde_json::json!({}));
    let service = cluster.service("web").clone();
    let error = commands::update_service(
        cluster.state(),
        &service.id,
        7,
        (*service.spec).clone(),
        cluster.now,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web is at version 1, not 7: read it again and repeat the change"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_fewer_tasks_run_than_the_policy_allows(
        count in 1_u32..8,
        parallelism in 0_u32..4,
        start_first in any::<bool>(),
        delay in 0_u64..3,
    ) {
        let order = if start_first { "start-first" } else { "stop-first" };
        let policy = serde_json::json!({
            "parallelism": parallelism, "order": order, "delay": format!("{delay}s"), "monitor": "1s",
        });
        let mut cluster = running(count, &policy);
        cluster.update("web", image("nginx:2"));
        let at_once = if parallelism == 0 { count } else { parallelism.min(count) };
        let allowed = if start_first { count } else { count - at_once };
        for _ in 0..count * 6 {
            cluster.pass(1);
            let slots: std::collections::BTreeSet<_> = cluster.running("web").into_iter().collect();
            prop_assert!(slots.len() >= allowed as usize, "{} of {count} run", slots.len());
            cluster.run_all();
        }
        play(&mut cluster, 5);
        prop_assert_eq!(state(&cluster), UpdateState::Completed);
        prop_assert_eq!(images(&cluster), vec!["nginx:2"; count as usize]);
    }
}
