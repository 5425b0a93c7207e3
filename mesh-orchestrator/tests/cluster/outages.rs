//! The store goes away and comes back: changes wait, and nothing else happens. On etcd, whose quorum is lost.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    cluster::EventKind,
    objects::{NodeRole, NodeStatus, TaskState},
};

use crate::{
    agent::Machine,
    lab::{Lab, PATIENCE, etcd, run, running, service},
};

pub(crate) fn stories() -> Vec<(&'static str, fn() -> Result<()>)> {
    vec![
        ("losing_the_quorum_stops_changes_and_nothing_else", quorum),
        ("losing_a_member_stops_nothing", member),
    ]
}

fn quorum() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&cluster))?;
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(&lab, "two", NodeRole::Manager).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        let before = user.cluster.read(|state| running(state, &web));
        let mut events = user.cluster.events();
        cluster.kill_member(0)?;
        cluster.kill_member(1)?;
        let refused = user.scale(&web, 8).await;
        ensure!(refused.is_err(), "without a quorum nothing can be changed");
        // As long as it takes until everybody has lost what they held in it.
        for machine in [&one, &two] {
            let mut present = machine.member()?.present();
            tokio::time::timeout(PATIENCE, present.wait_for(|present| !present))
                .await
                .context("an agent does not notice")??;
        }
        ensure!(!*user.cluster.available().borrow());
        // Meanwhile a container dies.
        let victim = before[0].clone();
        let holder = user
            .cluster
            .read(|state| state.tasks()[&victim].node.clone())
            .context("no node")?;
        let machine = if holder == one.node { &one } else { &two };
        machine.fail(&victim);
        cluster.start_member(0)?;
        cluster.start_member(1)?;
        user.until("the dead container is replaced, and no other", |state| {
            let now = running(state, &web);
            now.len() == 4 && !now.contains(&victim) && before[1..].iter().all(|task| now.contains(task))
        })
        .await?;
        for machine in [&one, &two] {
            let mut present = machine.member()?.present();
            tokio::time::timeout(PATIENCE, present.wait_for(|present| *present))
                .await
                .context("an agent does not come back")??;
        }
        user.scale(&web, 6).await?;
        user.until_running(&web, 6).await?;
        user.cluster.read(|state| {
            let task = &state.tasks()[&victim];
            ensure!(task.status.state == TaskState::Failed && task.status.exit_code == Some(1));
            ensure!(
                state
                    .nodes()
                    .values()
                    .all(|node| node.status == NodeStatus::Ready)
            );
            Ok(())
        })?;
        while let Ok(event) = events.try_recv() {
            ensure!(
                event.kind != EventKind::Node,
                "a node's status has changed: {event:?}"
            );
        }
        Ok(())
    })
}

fn member() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&cluster))?;
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        for number in 0..3 {
            let leader = cluster.leader()?;
            cluster.kill_member(leader)?;
            user.scale(&web, 3 + number).await?;
            user.until_running(&web, 3 + number as usize).await?;
            cluster.start_member(leader)?;
            cluster.wait_for_health()?;
        }
        Ok(())
    })
}
