//! Backups of a running cluster, and restoring them.

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::{
    backups::{self, BackupKind, Keep, RestoreInto},
    cluster::BackupSchedule,
    objects::{NodeRole, NodeStatus},
};
use mesh_orchestrator_testing::{
    PATIENCE,
    agent::Machine,
    lab::{Lab, running, service},
    run,
};

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_backup_restores_everything_into_an_empty_store", restored),
        ("a_backup_replaces_the_objects_of_a_running_cluster", replaced),
        ("scheduled_backups_do_not_depend_on_the_leader", scheduled),
    ]
}

fn restored(lab: &Lab) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let (path, web, history) = {
            let one = Machine::start(lab, "one", NodeRole::Manager).await?;
            let user = &one.handle;
            let web = user.create(service("web", 3)?).await?;
            user.update(&web, |json| json["labels"]["a"] = "b".into()).await?;
            user.until_running(&web, 3).await?;
            let made = user.cluster.backup(folder.path(), BackupKind::Manual).await?;
            (made.path, web.clone(), user.cluster.history(&web).await?)
        };
        let empty = lab.another()?;
        let user = empty.open().await?;
        user.cluster.restore(&path, RestoreInto::Empty).await?;
        ensure!(user.cluster.read(|state| state.service(&web).is_some()));
        ensure!(user.cluster.history(&web).await? == history);
        let old = user.cluster.read(|state| running(state, &web));
        ensure!(old.len() == 3);
        let statuses: Vec<_> = user
            .cluster
            .read(|state| state.nodes().values().map(|node| node.status).collect());
        ensure!(
            statuses == [NodeStatus::Unknown],
            "the machine may be gone: {statuses:?}"
        );
        // The machine has none of the containers, so its tasks are replaced.
        let _one = Machine::start(&empty, "one", NodeRole::Manager).await?;
        user.until("other tasks run", |state| {
            let new = running(state, &web);
            new.len() == 3 && new.iter().all(|task| !old.contains(task))
        })
        .await
    })
}

fn replaced(lab: &Lab) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 3)?).await?;
        user.until_running(&web, 3).await?;
        let made = user.cluster.backup(folder.path(), BackupKind::Manual).await?;
        user.scale(&web, 1).await?;
        let later = user.create(service("later", 2)?).await?;
        user.until_running(&web, 1).await?;
        user.until_running(&later, 2).await?;
        user.cluster.restore(&made.path, RestoreInto::Replace).await?;
        user.until(
            "the objects are as in the backup, and later tasks are gone",
            |state| {
                state.service(&later).is_none()
                    && running(state, &web).len() == 3
                    && state.tasks().values().all(|task| task.service != later)
            },
        )
        .await
    })
}

fn scheduled(lab: &Lab) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let machine = lab.open().await?;
        let schedule = BackupSchedule {
            folder: folder.path().join("backups"),
            keep: Keep::default(),
        };
        let made = async {
            loop {
                if let Ok(names) = backups::list(&folder.path().join("backups"))
                    && let Some(name) = names.first()
                {
                    return *name;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let name = tokio::select! {
            () = machine.cluster.keep_backups(&schedule) => bail!("the schedule ended"),
            made = tokio::time::timeout(PATIENCE, made) => made.context("no backup was made")?,
        };
        ensure!(name.kind == BackupKind::Hourly);
        let path = folder.path().join("backups").join(name.to_string());
        tokio::task::spawn_blocking(move || backups::inspect(&path)).await??;
        Ok(())
    })
}
