//! One node leads, and a former leader cannot change anything.

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    cluster::{EventAction, EventKind, LeaderConfig},
    objects::{NodeId, NodeRole},
    store::{Transaction, membership::election_key},
};
use mesh_orchestrator_testing::{
    PATIENCE, QUICK,
    agent::Machine,
    lab::{Lab, running, service},
    run,
};
use tokio_util::sync::CancellationToken;

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_fenced_leader_changes_nothing", fenced),
        ("another_candidate_takes_over_from_a_lost_leader", gone),
    ]
}

/// Another candidate wins while the leader still believes that it leads.
fn fenced(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let _worker = Machine::start(lab, "worker", NodeRole::Worker).await?;
        let candidates = [lab.open().await?, lab.open().await?];
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        for (number, candidate) in candidates.iter().enumerate() {
            let config = LeaderConfig {
                heartbeat: QUICK,
                ..LeaderConfig::new(NodeId::from(format!("candidate{number}").as_str()))
            };
            let (cluster, stop) = (candidate.cluster.clone(), stop.clone());
            tokio::spawn(async move { cluster.run_candidate(config, stop).await });
        }
        user.until("the node is ready", |state| {
            state.nodes().values().any(|node| node.is_schedulable())
        })
        .await?;
        let mut events = user.cluster.events();
        let slots = user.watch_slots();
        let mut created = 0;
        for round in 0..5 {
            // A waiting candidate wins now; the former leader finds out when it next changes something.
            let key = election_key("control")?;
            user.cluster
                .store()
                .commit(Transaction::new().delete(key))
                .await?;
            let web = user.create(service(&format!("web{round}"), 3)?).await?;
            user.until_running(&web, 3).await?;
            while let Ok(event) = events.try_recv() {
                created += usize::from(event.kind == EventKind::Task && event.action == EventAction::Create);
            }
            ensure!(
                created == 3 * (round + 1),
                "{created} tasks were created by round {round}"
            );
        }
        slots.end().await
    })
}

fn gone(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let mut changes = user.cluster.changes();
        changes
            .wait_for(|_| user.cluster.leader() == Some("one".into()))
            .await?;
        let _two = Machine::start(lab, "two", NodeRole::Manager).await?;
        user.until_ready(2).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        one.crash();
        let led = changes.wait_for(|_| user.cluster.leader() == Some("two".into()));
        tokio::time::timeout(PATIENCE, led)
            .await
            .context("no candidate took over")??;
        user.until("all tasks run on the other node", |state| {
            let tasks = running(state, &web);
            tasks.len() == 4
                && tasks
                    .iter()
                    .all(|task| state.tasks()[task].node == Some("two".into()))
        })
        .await
    })
}
