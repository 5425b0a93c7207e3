//! Old revisions of services.

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    commands,
    objects::{NodeRole, UpdateState},
    store::revisions::{KEPT, RevisionError},
};
use mesh_orchestrator_testing::{
    agent::Machine,
    lab::{Handle, Lab, running, service},
    run,
};

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("old_revisions_are_kept_compared_and_rolled_back_to", rolled_back),
        ("changes_of_the_loops_make_no_revision", loops),
        ("a_large_specification_keeps_its_history", large),
        ("concurrent_updates_make_one_history", race),
        (
            "a_removed_service_leaves_nothing_and_its_revisions_are_not_reused",
            removal,
        ),
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
        user.until("the old specification runs again", |state| {
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
        let (revision, author) = user
            .cluster
            .service_revision(&web)
            .context("the service is missing")?;
        ensure!(revision.number == 14 && author.action == "rollback to 5");
        // Rolling back again changes nothing.
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
        let (revision, _) = user
            .cluster
            .service_revision(&web)
            .context("the service is missing")?;
        user.until("the update is done", |state| {
            let service = &state.services()[&web];
            service.update_status.is_some() && !service.is_updating()
        })
        .await?;
        let (after, author) = user
            .cluster
            .service_revision(&web)
            .context("the service is missing")?;
        ensure!(after == revision && author.by == "someone");
        ensure!(user.cluster.history(&web).await?.len() == 2);
        Ok(())
    })
}

/// A new revision and the old one do not fit into one transaction.
fn large(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let label = |letter: &str| letter.repeat(600 << 10);
        let web = user.create(service("web", 0)?).await?;
        for letter in ["b", "c", "d"] {
            user.update(&web, |json| json["labels"]["large"] = label(letter).into())
                .await?;
        }
        for (number, letter) in [(2, "b"), (3, "c"), (4, "d")] {
            let old = user.cluster.revision_of(&web, number).await?;
            ensure!(
                old.value.spec.labels.get("large") == Some(&label(letter)),
                "revision {number}"
            );
        }
        Ok(())
    })
}

fn race(lab: &Lab) -> Result<()> {
    run(async {
        let handles = [lab.open().await?, lab.open().await?];
        let web = handles[0].create(service("web", 0)?).await?;
        handles[1]
            .until("the service is there", |state| state.service(&web).is_some())
            .await?;
        let update = async |handle: &Handle| {
            for _ in 0..10 {
                handle
                    .update(&web, |json| {
                        let count = json["labels"]["count"].as_str().unwrap_or("0");
                        let count: u32 = count.parse().unwrap_or_default();
                        json["labels"]["count"] = (count + 1).to_string().into();
                    })
                    .await?;
            }
            anyhow::Ok(())
        };
        let (one, other) = tokio::join!(update(&handles[0]), update(&handles[1]));
        one?;
        other?;
        let history = handles[0].cluster.history(&web).await?;
        ensure!(history.len() as u64 == KEPT + 1);
        for (old, count) in history.iter().zip((0..=20_u64).rev()) {
            ensure!(old.revision.number == count + 1, "{}", old.revision);
            ensure!(old.value.spec.labels.get("count") == Some(&count.to_string()));
        }
        Ok(())
    })
}

fn removal(lab: &Lab) -> Result<()> {
    run(async {
        let user = lab.open().await?;
        let id = user.cluster.new_service_id();
        let spec = service("web", 0)?;
        let create = async || {
            let author = user.cluster.author("someone", "create");
            user.cluster
                .change(author, |state, now| {
                    commands::create_service(state, id.clone(), spec.clone(), now)
                })
                .await
        };
        let first = create().await?.services[&id];
        for replicas in 1..=KEPT {
            user.scale(&id, u32::try_from(replicas)?).await?;
        }
        let author = user.cluster.author("someone", "remove");
        user.cluster
            .change(author, |state, _| commands::remove_service(state, &id))
            .await?;
        let left = user.cluster.store().snapshot().await?.entries().await?;
        ensure!(
            !left.iter().any(|entry| entry.key.as_str().contains(id.as_str())),
            "left in the store: {left:?}"
        );
        let again = create().await?.services[&id];
        ensure!(again.number == 1 && again != first);
        Ok(())
    })
}
