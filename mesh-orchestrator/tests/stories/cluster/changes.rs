//! Changing and reading the cluster's objects through several handles at once.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    cluster::{ChangeError, Cluster, EventAction, EventKind, SystemClock},
    commands::{self, CommandError},
    objects::State,
    spec::ServiceMode,
};
use mesh_orchestrator_testing::{
    lab::{Handle, Lab, service},
    run,
};
use tokio_util::sync::CancellationToken;

use super::Story;

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("every_handle_sees_a_change_and_gets_an_event", seen),
        ("two_services_cannot_have_one_name", one_name),
        ("concurrent_changes_are_all_made", at_once),
        ("a_handle_that_is_behind_changes_nothing_by_mistake", behind),
    ]
}

fn seen(lab: &Lab) -> Result<()> {
    run(async {
        let (one, other) = (lab.open().await?, lab.open().await?);
        let mut events = other.cluster.events();
        let id = one.cluster.new_service_id();
        let web = service("web", 2)?;
        let changed = one
            .cluster
            .change(one.cluster.author("someone", "create"), |state, now| {
                commands::create_service(state, id.clone(), web.clone(), now)
            })
            .await?;
        ensure!(one.cluster.read(|state| state.service_named("web").is_some()));
        ensure!(changed.services.get(&id).map(|revision| revision.number) == Some(1));
        ensure!(one.cluster.revision() >= changed.revision);
        other
            .until("the service is there", |state| state.service(&id).is_some())
            .await?;
        let event = events.recv().await?;
        ensure!(event.kind == EventKind::Service && event.action == EventAction::Create);
        ensure!(event.name == "web" && event.id == id.as_str());
        let (revision, author) = other.cluster.service_revision(&id).context("no revision")?;
        ensure!(changed.services.get(&id) == Some(&revision) && author.by == "someone");
        // A handle that is opened later lists the same revision.
        let late = lab.open().await?;
        ensure!(late.cluster.service_revision(&id) == other.cluster.service_revision(&id));
        Ok(())
    })
}

fn one_name(lab: &Lab) -> Result<()> {
    run(async {
        let (one, other) = (lab.open().await?, lab.open().await?);
        let web = service("web", 2)?;
        let create = async |handle: &Handle| {
            let id = handle.cluster.new_service_id();
            let author = handle.cluster.author("someone", "create");
            handle
                .cluster
                .change(author, |state, now| {
                    commands::create_service(state, id.clone(), web.clone(), now)
                })
                .await
        };
        let (first, second) = tokio::join!(create(&one), create(&other));
        let refused = match (first, second) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            both => anyhow::bail!("{both:?}"),
        };
        ensure!(
            matches!(refused, ChangeError::Command(CommandError::NameTaken(_))),
            "{refused:?}"
        );
        ensure!(one.cluster.read(|state| state.services().len()) == 1);
        Ok(())
    })
}

fn at_once(lab: &Lab) -> Result<()> {
    run(async {
        let (one, other) = (lab.open().await?, lab.open().await?);
        let id = one.cluster.new_service_id();
        let web = service("web", 0)?;
        one.cluster
            .change(one.cluster.author("someone", "create"), |state, now| {
                commands::create_service(state, id.clone(), web.clone(), now)
            })
            .await?;
        let more = async |handle: &Handle| {
            for _ in 0..5 {
                handle
                    .cluster
                    .change(handle.cluster.author("someone", "scale"), |state, now| {
                        let service = state
                            .service(&id)
                            .ok_or_else(|| CommandError::UnknownService(id.clone()))?;
                        let ServiceMode::Replicated(settings) = service.spec.mode else {
                            return Err(CommandError::NotReplicated("web".into()));
                        };
                        commands::scale_service(state, &id, settings.replicas + 1, now)
                    })
                    .await?;
            }
            Ok::<_, ChangeError>(())
        };
        other
            .until("the service is there", |state| state.service(&id).is_some())
            .await?;
        let (first, second) = tokio::join!(more(&one), more(&other));
        first?;
        second?;
        one.until("all ten are there", |state| {
            state.service(&id).is_some_and(|service| {
                matches!(&service.spec.mode, ServiceMode::Replicated(settings) if settings.replicas == 10)
                    && service.version == 11
            })
        })
        .await
    })
}

/// A handle whose state is old neither takes a change for done nor refuses what is possible by now.
fn behind(lab: &Lab) -> Result<()> {
    run(async {
        let store = lab.store().await?;
        let one = lab.open().await?;
        let id = one.create(service("web", 6)?).await?;
        // Until its upkeep runs, a handle does not see what others change.
        let open = || Cluster::open(Arc::clone(&store), Arc::new(SystemClock));
        let scale = async |cluster: &Cluster, replicas| {
            let author = cluster.author("someone", "scale");
            let plan = |state: &State, now| commands::scale_service(state, &id, replicas, now);
            cluster.change(author, plan).await
        };
        let replicas = |state: &State| match state.service(&id).map(|service| service.spec.mode) {
            Some(ServiceMode::Replicated(settings)) => settings.replicas,
            _ => 0,
        };

        let (late, upkeep) = open().await?;
        scale(&one.cluster, 7).await?;
        ensure!(late.read(replicas) == 6);
        let stop = CancellationToken::new();
        // The change is polled first: it is planned before the handle has caught up.
        let (scaled, ()) = tokio::join!(
            biased;
            async {
                let scaled = scale(&late, 6).await;
                stop.cancel();
                scaled
            },
            upkeep.run(stop.clone())
        );
        scaled?;
        one.until("the last change is made", |state| replicas(state) == 6)
            .await?;

        let (late, upkeep) = open().await?;
        let other = one.create(service("other", 1)?).await?;
        let stop = CancellationToken::new();
        let (removed, ()) = tokio::join!(
            biased;
            async {
                let author = late.author("someone", "remove");
                let plan = |state: &State, _| commands::remove_service(state, &other);
                let removed = late.change(author, plan).await;
                stop.cancel();
                removed
            },
            upkeep.run(stop.clone())
        );
        removed?;
        one.until("the service is removed", |state| state.service(&other).is_none())
            .await
    })
}
