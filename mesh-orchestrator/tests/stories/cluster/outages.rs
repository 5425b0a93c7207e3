//! The store becomes unavailable and recovers: changes wait, and nothing else happens. On etcd the quorum is
//! lost, on the embedded store the disk is full.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::{
    cluster::{EventAction, EventKind, LeaderConfig},
    commands,
    objects::{NodeRole, NodeStatus, TaskState},
    store::{Key, Prefix, StoreError, Transaction},
};
use mesh_orchestrator_testing::{
    PATIENCE, QUICK,
    agent::Machine,
    disk::Disk,
    etcd,
    lab::{Handle, Lab, running, service},
    run,
};
use mesh_support::watched::Watched as _;
use tokio_util::sync::CancellationToken;

use crate::OwnStory;

pub(super) fn stories() -> Vec<OwnStory> {
    vec![
        ("redb::a_full_disk_stops_only_changes", full),
        ("etcd::a_lost_quorum_stops_only_changes", quorum),
        ("etcd::the_leader_compacts_the_store", compacts),
        (
            "etcd::a_handle_that_was_cut_off_for_long_reads_everything_again",
            cut_off,
        ),
        ("etcd::a_lost_member_stops_nothing", member),
    ]
}

fn full() -> Result<()> {
    let disk = Disk::new("8m")?;
    let ballast = disk.path().join("ballast");
    let lab = Lab::redb_in(disk.path());
    run(async {
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        let before = user.cluster.read(|state| running(state, &web));
        fs::write(&ballast, vec![0; 1 << 20])?;
        // Something small takes the last free page.
        for size in [200_000, 20_000, 2_000, 200, 1] {
            fill(user, size).await?;
        }
        let refused = user.scale(&web, 4).await;
        ensure!(refused.is_err(), "nothing can be changed on a full disk");
        let mut available = user.cluster.available();
        tokio::time::timeout(PATIENCE, available.wait_for(|available| !available))
            .await
            .context("the outage was not noticed")??;
        one.fail(&before[0]);
        fs::remove_file(&ballast)?;
        user.until("only the dead container is replaced", |state| {
            let now = running(state, &web);
            now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
        })
        .await?;
        user.scale(&web, 4).await?;
        user.until_running(&web, 4).await
    })
}

/// Writes until there is no room for this many bytes.
async fn fill(user: &Handle, size: usize) -> Result<()> {
    for number in 0..5_000 {
        let key = Key::new(["filler", &format!("{size}-{number}")])?;
        let filler = Transaction::new().put(key, vec![b'x'; size]);
        match user.cluster.store().commit(filler).await {
            Ok(_) => {}
            Err(error) if error.is_unavailable() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the disk did not fill")
}

fn quorum() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&cluster));
    run(async {
        let user = lab.open().await?;
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let two = Machine::start(&lab, "two", NodeRole::Manager).await?;
        user.until_ready(2).await?;
        let web = user.create(service("web", 4)?).await?;
        user.until_running(&web, 4).await?;
        let before = user.cluster.read(|state| running(state, &web));
        let mut events = user.cluster.events();
        let slots = user.watch_slots();
        // The member that stays is a follower, which accepts nothing without a leader. A leader would keep
        // what it cannot commit, and commit it when the others are back.
        let leader = cluster.leader()?;
        let lost = [leader, (leader + 1) % 3];
        for member in lost {
            cluster.kill_member(member)?;
        }
        let refused = user.scale(&web, 8).await;
        ensure!(refused.is_err(), "without a quorum nothing can be changed");
        // Until both have lost their registrations.
        for machine in [&one, &two] {
            let mut present = machine.member()?.present();
            tokio::time::timeout(PATIENCE, present.wait_for(|present| !present))
                .await
                .context("an agent did not notice the outage")??;
        }
        ensure!(!user.cluster.available().current());
        // Meanwhile a container dies.
        let victim = before[0].clone();
        let holder = user
            .cluster
            .read(|state| state.tasks()[&victim].node.clone())
            .context("no node")?;
        let machine = if holder == one.node { &one } else { &two };
        machine.fail(&victim);
        for member in lost {
            cluster.start_member(member)?;
        }
        user.until("only the dead container is replaced", |state| {
            let now = running(state, &web);
            now.len() == 4 && !now.contains(&victim) && before[1..].iter().all(|task| now.contains(task))
        })
        .await?;
        for machine in [&one, &two] {
            let mut present = machine.member()?.present();
            tokio::time::timeout(PATIENCE, present.wait_for(|present| *present))
                .await
                .context("an agent did not register again")??;
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
        slots.end().await
    })
}

fn member() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&cluster));
    run(async {
        let user = lab.open().await?;
        let _one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        let slots = user.watch_slots();
        for number in 0..3 {
            let leader = cluster.leader()?;
            cluster.kill_member(leader)?;
            user.scale(&web, 3 + number).await?;
            user.until_running(&web, 3 + number as usize).await?;
            cluster.start_member(leader)?;
            cluster.wait_for_health()?;
        }
        slots.end().await
    })
}

fn compacts() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(cluster);
    run(async {
        let user = lab.open().await?;
        let web = user.create(service("web", 0)?).await?;
        let old = user.cluster.revision();
        user.scale(&web, 1).await?;
        let leader = lab.open().await?;
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let config = LeaderConfig {
            heartbeat: QUICK,
            remember: Duration::from_secs(1),
            ..LeaderConfig::new("leader".into())
        };
        let leading = leader.cluster.clone();
        tokio::spawn(async move { leading.run_candidate(config, stop).await });
        let compacted = async {
            loop {
                match user.cluster.store().watch(&Prefix::everything(), old).await {
                    Err(StoreError::Compacted { .. }) => return Ok(()),
                    Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(PATIENCE, compacted)
            .await
            .context("the store was not compacted")??;
        // Nothing depends on the old revisions.
        user.scale(&web, 2).await?;
        leader
            .until("the change is seen", |state| {
                state.service(&web).is_some_and(|service| service.version == 3)
            })
            .await
    })
}

fn cut_off() -> Result<()> {
    let cluster = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&cluster));
    run(async {
        let user = lab.open().await?;
        let gone = user.create(service("gone", 0)?).await?;
        let stays = user.create(service("stays", 0)?).await?;
        // It is configured with one member only, which is cut off.
        let lonely = lab.open_on_member(0).await?;
        let mut events = lonely.cluster.events();
        cluster.freeze_member(0, true)?;
        let author = user.cluster.author("someone", "remove");
        user.cluster
            .change(author, |state, _| commands::remove_service(state, &gone))
            .await?;
        let new = user.create(service("new", 0)?).await?;
        user.scale(&stays, 1).await?;
        let revision = user.cluster.revision();
        user.cluster.store().compact(revision).await?;
        cluster.freeze_member(0, false)?;
        lonely
            .until("it has the same objects as the others", |state| {
                state.service(&gone).is_none()
                    && state.service(&new).is_some()
                    && state.service(&stays).is_some_and(|service| service.version == 2)
            })
            .await?;
        let mut seen = Vec::new();
        while let Ok(event) = events.try_recv() {
            seen.push((event.name, event.action));
        }
        seen.sort();
        let expected = [
            ("gone".to_owned(), EventAction::Remove),
            ("new".to_owned(), EventAction::Create),
            ("stays".to_owned(), EventAction::Update),
        ];
        ensure!(seen == expected, "{seen:?}");
        // It works from there on.
        lonely.scale(&stays, 2).await?;
        Ok(())
    })
}
