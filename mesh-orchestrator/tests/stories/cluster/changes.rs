//! Changing the cluster's objects and reading them, by several handles at once.

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    cluster::{ChangeError, EventAction, EventKind},
    commands::{self, CommandError},
    spec::ServiceMode,
};

use crate::{
    Story,
    lab::{Lab, run, service},
};

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("a_change_is_seen_by_every_handle_and_told_as_an_event", seen),
        ("of_two_services_of_one_name_there_is_one", one_name),
        ("changes_made_at_once_are_all_made", at_once),
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
        // A handle that is opened later lists what the others were told.
        let late = lab.open().await?;
        ensure!(late.cluster.service_revision(&id) == other.cluster.service_revision(&id));
        Ok(())
    })
}

fn one_name(lab: &Lab) -> Result<()> {
    run(async {
        let (one, other) = (lab.open().await?, lab.open().await?);
        let web = service("web", 2)?;
        let create = async |handle: &crate::lab::Handle| {
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
        let more = async |handle: &crate::lab::Handle| {
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
