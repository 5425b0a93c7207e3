//! Old revisions of services.

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    objects::{NodeRole, UpdateState},
    store::revisions::{KEPT, RevisionError},
};

use crate::{
    Story,
    agent::Machine,
    lab::{Lab, run, running, service},
};

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("old_revisions_are_kept_compared_and_rolled_back_to", rolled_back),
        ("what_the_loops_note_makes_no_revision", loops),
    ]
}

fn rolled_back(lab: &Lab) -> Result<()> {
    run(async {
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 2)?).await?;
        for number in 2..=13 {
            user.update(&web, |json| {
                json["task_template"]["container_spec"]["image"] = format!("web:{number}").into();
            })
            .await?;
        }
        let history = user.cluster.history(&web).await?;
        let numbers: Vec<u64> = history.iter().map(|old| old.revision.number).collect();
        let kept: Vec<u64> = (13 - KEPT..=13).rev().collect();
        ensure!(numbers == kept, "{numbers:?}");
        ensure!(
            history
                .iter()
                .all(|old| old.author.by == "someone" && old.value.version == old.revision.number)
        );
        let differences = user.cluster.diff(&web, 5, 13).await?;
        let [difference] = differences.as_slice() else {
            anyhow::bail!("{differences:?}");
        };
        ensure!(
            difference.path == "task_template.container_spec.image",
            "{difference:?}"
        );
        match user.cluster.revision_of(&web, 1).await {
            Err(RevisionError::NotKept { number: 1, .. }) => {}
            other => anyhow::bail!("{other:?}"),
        }
        let author = user.cluster.author("someone", "rollback to 5");
        let changed = user.cluster.roll_back(author, &web, Some(5)).await?;
        ensure!(changed.services.get(&web).map(|revision| revision.number) == Some(14));
        user.until("it is back where it was", |state| {
            let service = &state.services()[&web];
            let tasks = running(state, &web);
            let is_old = |task| state.tasks()[task].spec.container_spec.image.as_str() == "web:5";
            tasks.len() == 2
                && tasks.iter().all(is_old)
                && service
                    .update_status
                    .as_ref()
                    .is_some_and(|status| status.state == UpdateState::RollbackCompleted)
        })
        .await?;
        let (revision, author) = user.cluster.service_revision(&web).context("it is gone")?;
        ensure!(revision.number == 14 && author.action == "rollback to 5");
        // Once more changes nothing.
        let author = user.cluster.author("someone", "rollback to 5");
        let changed = user.cluster.roll_back(author, &web, Some(5)).await?;
        ensure!(changed.services.is_empty());
        Ok(())
    })
}

fn loops(lab: &Lab) -> Result<()> {
    run(async {
        let one = Machine::start(lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let web = user.create(service("web", 2)?).await?;
        user.until_running(&web, 2).await?;
        user.update(&web, |json| {
            json["task_template"]["container_spec"]["image"] = "web:2".into();
        })
        .await?;
        let (revision, _) = user.cluster.service_revision(&web).context("it is gone")?;
        user.until("the update is done", |state| {
            let service = &state.services()[&web];
            service.update_status.is_some() && !service.is_updating()
        })
        .await?;
        let (after, author) = user.cluster.service_revision(&web).context("it is gone")?;
        ensure!(after == revision && author.by == "someone");
        ensure!(user.cluster.history(&web).await?.len() == 2);
        Ok(())
    })
}
