//! Nodes join, fall silent, leave and come back.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    commands,
    objects::{Availability, NodeId, NodeRole, NodeStatus, State},
};
use mesh_orchestrator_testing::{
    PATIENCE,
    agent::{Machine, description},
    lab::{Lab, running, service},
    run,
};

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_silent_node_is_down_and_its_tasks_are_replaced", silent),
        ("a_restarted_agent_keeps_its_tasks", restarted),
        ("a_node_keeps_what_users_have_set", labels),
        ("a_drained_node_loses_its_tasks", drained),
        ("every_node_reads_what_an_agent_registers", registers),
    ]
}

fn status(state: &State, node: &NodeId) -> Option<NodeStatus> {
    state.nodes().get(node).map(|node| node.status)
}

fn silent(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(lab, "two", NodeRole::Worker).await?;
        let node = two.node.clone();
        user.until_ready(2).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        two.crash();
        user.until("the node is down", |state| {
            status(state, &node) == Some(NodeStatus::Down)
        })
        .await?;
        user.until("all tasks run on the other node", |state| {
            let tasks = running(state, &web);
            tasks.len() == 4
                && tasks
                    .iter()
                    .all(|task| state.tasks()[task].node == Some("one".into()))
        })
        .await?;
        // It comes back without its containers: its old tasks are reported as ended, and not replaced again.
        let _two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until("the node is back, and has no tasks", |state| {
            status(state, &node) == Some(NodeStatus::Ready)
                && state.tasks_on(&node).is_none_or(|index| index.tasks.is_empty())
        })
        .await?;
        ensure!(user.cluster.read(|state| running(state, &web)).len() == 4);
        Ok(())
    })
}

fn restarted(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until_ready(2).await?;
        let mut events = user.cluster.events();
        let node = two.node.clone();
        two.leave().await;
        let mut changes = user.cluster.changes();
        changes
            .wait_for(|_| user.cluster.registration(&node).is_none())
            .await?;
        let _two = Machine::start(lab, "two", NodeRole::Worker).await?;
        changes
            .wait_for(|_| {
                user.cluster
                    .registration(&node)
                    .is_some_and(|registration| !registration.leaving)
            })
            .await?;
        // By the time that these tasks run, the leader would have stored a change of the node.
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        while let Ok(event) = events.try_recv() {
            ensure!(
                event.kind != mesh_orchestrator::cluster::EventKind::Node,
                "{event:?}"
            );
        }
        Ok(())
    })
}

fn labels(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        user.until("the node is ready", |state| {
            status(state, &one.node) == Some(NodeStatus::Ready)
        })
        .await?;
        let author = user.cluster.author("someone", "label");
        user.cluster
            .change(author, |state, now| {
                let Some(node) = state.nodes().get(&one.node) else {
                    return Ok(Vec::new());
                };
                let mut node = node.clone();
                node.labels.insert("disk".into(), "fast".into());
                Ok(commands::put_node(state, node, now))
            })
            .await?;
        let mut described = description("one", NodeRole::Manager);
        described.engine_labels.insert("engine".into(), "new".into());
        one.member()?.describe(described);
        user.until("the node has both labels", |state| {
            state.nodes().get(&one.node).is_some_and(|node| {
                node.labels.contains_key("disk")
                    && node.engine_labels.contains_key("engine")
                    && node.status == NodeStatus::Ready
            })
        })
        .await
    })
}

fn drained(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(lab, "two", NodeRole::Worker).await?;
        user.until_ready(2).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        let author = user.cluster.author("someone", "drain");
        user.cluster
            .change(author, |state, now| {
                commands::modify_node(state, &two.node, Some(Availability::Drain), &BTreeMap::new(), now)
            })
            .await?;
        user.until("the node has no tasks", |state| {
            running(state, &web).len() == 4
                && state
                    .tasks_on(&two.node)
                    .is_none_or(|index| index.tasks.is_empty())
        })
        .await
    })
}

fn registers(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let mut changes = user.cluster.changes();
        for datapath in ["ebpf", "leaving", "none"] {
            one.member()?
                .update_registration(|registration| registration.datapath = datapath.to_owned());
            let registered = changes.wait_for(|_| {
                user.cluster
                    .registration(&one.node)
                    .is_some_and(|registration| registration.datapath == datapath)
            });
            tokio::time::timeout(PATIENCE, registered)
                .await
                .context("the registration was not seen")??;
        }
        Ok(())
    })
}
