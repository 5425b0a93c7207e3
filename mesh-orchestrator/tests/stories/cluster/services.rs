//! Services from creation to removal, with users, the leader and agents on handles of their own.

use std::sync::Arc;

use anyhow::{Result, ensure};
use mesh_orchestrator::{
    cluster::ChangeError,
    commands,
    objects::{NodeRole, ServiceId, Slot, State, Task, TaskState, TaskStatus},
    spec::{ServiceSpec, TaskSpec},
    store::{Key, Transaction},
};
use mesh_orchestrator_testing::{
    agent::Machine,
    lab::{Lab, running, service, spec},
    run,
};
use serde_json::json;

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_service_is_scheduled_runs_is_scaled_and_removed", life),
        ("a_dead_container_is_replaced", dies),
        ("a_jobs_tasks_stay_complete", job),
        ("a_global_service_runs_on_each_node", global),
        (
            "an_update_completes_while_users_keep_changing_the_service",
            contended,
        ),
        ("reports_only_go_forward", forward),
        ("an_object_that_is_too_large_holds_up_no_other", too_large),
        ("a_thousand_tasks_need_many_transactions", many),
    ]
}

fn life(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until_ready(2).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        user.until("both nodes have two tasks", |state| {
            [&one, &two].iter().all(|machine| {
                state
                    .tasks_on(&machine.node)
                    .is_some_and(|index| index.tasks.len() == 2)
            })
        })
        .await?;
        ensure!(user.cluster.leader() == Some(one.node.clone()));
        let before = user.cluster.read(|state| running(state, &web));
        user.scale(&web, 6).await?;
        user.until_running(&web, 6).await?;
        let after = user.cluster.read(|state| running(state, &web));
        ensure!(before.iter().all(|task| after.contains(task)));
        user.scale(&web, 1).await?;
        user.until_running(&web, 1).await?;
        let author = user.cluster.author("someone", "remove");
        user.cluster
            .change(author, |state, _| commands::remove_service(state, &web))
            .await?;
        user.until("nothing is left", |state| {
            state.services().is_empty() && state.tasks().is_empty()
        })
        .await?;
        let left = user.cluster.store().snapshot().await?.entries().await?;
        let left: Vec<&str> = left.iter().map(|entry| entry.key.as_str()).collect();
        ensure!(
            !left.iter().any(|key| key.contains(web.as_str())),
            "left in the store: {left:?}"
        );
        Ok(())
    })
}

fn too_large(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        user.until_ready(1).await?;
        let large = user.create(service("large", 0)?).await?;
        // As an earlier release stored it: it fits, and nothing can be added to it.
        let task = |spec| Task {
            id: "large-task".into(),
            service: large.clone(),
            service_name: "large".into(),
            slot: Slot::Number(1),
            spec: Arc::new(spec),
            spec_version: 1,
            host_ports: Vec::new(),
            node: None,
            desired: TaskState::Running,
            status: TaskStatus::new(TaskState::Pending, user.cluster.clock().now(), ""),
            created_at: user.cluster.clock().now(),
            started_at: None,
            finished_at: None,
            not_before: None,
            restarts: Vec::new(),
            failures: 0,
            update_began: None,
            given_up: false,
        };
        let rest = serde_json::to_vec(&task(with_environment("")?))?.len();
        let stored = serde_json::to_vec(&task(with_environment(&"x".repeat(1_494_800 - rest))?))?;
        let key: Key = "/tasks/large-task".parse()?;
        user.cluster
            .store()
            .commit(Transaction::new().put(key.clone(), stored))
            .await?;
        user.until("it has been read", |state| {
            state.tasks().contains_key("large-task")
        })
        .await?;
        user.scale(&large, 1).await?;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        user.scale(&web, 3).await?;
        user.until_running(&web, 3).await?;
        // Nor is anything accepted that could not be changed later.
        let too_large = || -> Result<ServiceSpec> {
            let mut spec = service("new", 1)?;
            spec.task_template = Arc::new(with_environment(&"x".repeat(1_480_000))?);
            Ok(spec)
        };
        let refused = user.create(too_large()?).await.unwrap_err();
        let refused = refused.downcast_ref::<ChangeError>();
        ensure!(
            matches!(refused, Some(ChangeError::TooLarge { .. })),
            "{refused:?}"
        );
        // A report is cut to a size that fits.
        let task = user.cluster.read(|state| running(state, &web)).remove(0);
        let status = TaskStatus::new(TaskState::Failed, user.cluster.clock().now(), "failed");
        one.handle
            .cluster
            .report(task.clone(), status.with_error("x".repeat(2_000_000)));
        user.until("it failed", |state| {
            state
                .tasks()
                .get(&task)
                .is_none_or(|task| task.status.state == TaskState::Failed)
        })
        .await?;
        // Removed, it is out of the way, whatever becomes of its task.
        user.cluster
            .store()
            .commit(Transaction::new().delete(key))
            .await?;
        let author = user.cluster.author("someone", "remove");
        let remove = |state: &State, _| commands::remove_service(state, &large);
        user.cluster.change(author, remove).await?;
        user.until("it is gone", |state| state.service(&large).is_none())
            .await?;
        user.until_running(&web, 3).await
    })
}

fn with_environment(value: &str) -> Result<TaskSpec> {
    let spec = json!({"container_spec": {"image": "large:1", "env": [format!("A={value}")]}});
    Ok(serde_json::from_value(spec)?)
}

fn dies(lab: &Lab) -> Result<()> {
    run(async {
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        let before = user.cluster.read(|state| running(state, &web));
        one.fail(&before[0]);
        user.until("another one runs", |state| {
            let now = running(state, &web);
            now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
        })
        .await?;
        user.until("how the task ended is stored", |state| {
            state.tasks().get(&before[0]).is_some_and(|task| {
                task.status.state == TaskState::Failed
                    && task.status.exit_code == Some(1)
                    && task.started_at.is_some()
                    && task.finished_at.is_some()
            })
        })
        .await
    })
}

fn job(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let job = spec(json!({
            "name": "count",
            "task_template": {"container_spec": {"image": "count:1"}},
            "mode": {"replicated_job": {"max_concurrent": 2, "total_completions": 5}},
        }))?;
        let job = user.create(job).await?;
        let complete = |state: &State| {
            let done = state
                .tasks()
                .values()
                .filter(|task| task.status.state == TaskState::Complete);
            done.count() == 5
        };
        user.until("five are complete", complete).await?;
        // Whatever else happens, they stay complete, and no more are created.
        one.member()?
            .update_registration(|registration| registration.engine = false);
        user.until("the node is without engine", |state| {
            state.nodes().values().all(|node| !node.is_schedulable())
        })
        .await?;
        one.member()?
            .update_registration(|registration| registration.engine = true);
        user.until("the node is back", |state| {
            state.nodes().values().all(|node| node.is_schedulable())
        })
        .await?;
        ensure!(user.cluster.read(complete) && user.cluster.read(|state| state.tasks().len()) == 5);
        let author = user.cluster.author("someone", "remove");
        user.cluster
            .change(author, |state, _| commands::remove_service(state, &job))
            .await?;
        user.until("nothing is left", |state| state.tasks().is_empty())
            .await
    })
}

fn global(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let everywhere = spec(json!({
            "name": "everywhere",
            "task_template": {"container_spec": {"image": "web:1"}},
            "mode": {"global": {}},
        }))?;
        let everywhere = user.create(everywhere).await?;
        user.until_running(&everywhere, 1).await?;
        let _two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until_running(&everywhere, 2).await
    })
}

/// Agents report, the leader updates, and a user keeps changing the same service.
fn contended(lab: &Lab) -> Result<()> {
    const CHANGES: u64 = 20;
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let _two = Machine::start(lab, "two", NodeRole::Worker).await?;
        let web = user.create(service("web", 6)?).await?;
        user.until_running(&web, 6).await?;
        let slots = user.watch_slots();
        for number in 1..=CHANGES {
            user.update(&web, |json| {
                json["labels"][format!("label{number}")] = "set".into();
                if number % 4 == 0 {
                    json["task_template"]["container_spec"]["image"] = format!("web:{number}").into();
                }
            })
            .await?;
        }
        let is_done = |state: &State, web: &ServiceId| {
            let Some(service) = state.service(web) else {
                return false;
            };
            let current = |id| {
                state
                    .tasks()
                    .get(id)
                    .is_some_and(|task| task.spec.container_spec.image.as_str() == format!("web:{CHANGES}"))
            };
            let tasks = running(state, web);
            tasks.len() == 6 && tasks.iter().all(current) && !service.is_updating()
        };
        user.until("the last update is done", |state| is_done(state, &web))
            .await?;
        slots.end().await?;
        user.cluster.read(|state| {
            let Some(service) = state.service(&web) else {
                anyhow::bail!("the service is missing");
            };
            // Each change was made exactly once.
            ensure!(service.version == CHANGES + 1, "version {}", service.version);
            ensure!(service.spec.labels.len() as u64 == CHANGES);
            Ok(())
        })
    })
}

fn forward(lab: &Lab) -> Result<()> {
    run(async {
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 1)?).await?;
        user.until_running(&web, 1).await?;
        let task = user.cluster.read(|state| running(state, &web)).remove(0);
        let status = |state| TaskStatus::new(state, user.cluster.clock().now(), "again");
        for late in [TaskState::Accepted, TaskState::Starting] {
            user.cluster.report(task.clone(), status(late));
        }
        user.cluster.reported().await;
        let revision = user.cluster.revision();
        // The same status with a later time: nothing to store.
        let known = user
            .cluster
            .read(|state| state.tasks().get(&task).map(|task| task.status.clone()));
        let Some(known) = known else {
            anyhow::bail!("the service is missing");
        };
        ensure!(known.state == TaskState::Running, "{known:?}");
        let mut again = known.clone();
        again.at = user.cluster.clock().now();
        user.cluster.report(task.clone(), again);
        user.cluster.reported().await;
        ensure!(user.cluster.revision() == revision || !lab.has_leases());
        // A report of an unknown task is ignored.
        user.cluster.report("unknown".into(), status(TaskState::Running));
        user.cluster.reported().await;
        Ok(())
    })
}

fn many(lab: &Lab) -> Result<()> {
    const TASKS: u32 = 1_000;
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let _two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until_ready(2).await?;
        let slots = user.watch_slots();
        let web = user.create(service("web", TASKS)?).await?;
        user.until_running(&web, TASKS as usize).await?;
        let author = user.cluster.author("someone", "remove");
        user.cluster
            .change(author, |state, _| commands::remove_service(state, &web))
            .await?;
        user.until("nothing is left", |state| state.tasks().is_empty())
            .await?;
        slots.end().await
    })
}
