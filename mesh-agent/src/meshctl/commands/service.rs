//! `meshctl service`: what only reads, and what is done by one request; the rest is in `service_change`.

use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{HistoryEntry, RevisionView, ServiceView, TaskView},
    store::Difference,
};
use reqwest::StatusCode;

use super::{InspectFlags, ListFlags, PlainListFlags, logs, now, service_change as change};
use crate::meshctl::{
    client::Api,
    failure::Failure,
    output::Format,
    views::{filter::Filter, history, inspect, service_pretty, services, tasks},
};

/// Docker's commands for services, and some more.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Create a new service
    Create(Box<change::Create>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// List the tasks of one or more services
    Ps(Ps),
    /// Display detailed information on one or more services
    Inspect(Inspect),
    /// Update a service
    Update(Box<change::Update>),
    /// Scale one or multiple replicated services
    Scale(change::Scale),
    /// Revert changes to a service's configuration
    Rollback(change::Rollback),
    /// Fetch the logs of a service or task
    Logs(logs::Logs),
    /// Remove one or more services
    #[command(visible_alias = "remove")]
    Rm(change::Remove),
    /// Move tasks to where there is more room
    Rebalance(change::Rebalance),
    /// Take a service's tasks away and keep its definition
    Pause(change::Switch),
    /// Give a paused service its tasks back
    Resume(change::Switch),
    /// Who changed a service, when and how
    History(History),
    /// What differs between two revisions of a service
    Diff(Diff),
    /// Resume a service, tell systemd when it is ready, and pause it when told to stop
    Attach(change::Attach),
}

/// Tasks of services.
#[derive(Debug, Args)]
pub struct Ps {
    /// Services, by name or id
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    tasks: TaskFlags,
}

/// How tasks are listed.
#[derive(Debug, Args)]
pub(super) struct TaskFlags {
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not map IDs to Names
    #[arg(long)]
    no_resolve: bool,
    #[command(flatten)]
    list: ListFlags,
}

impl TaskFlags {
    /// Whether the filter can be understood: told before anything is asked for.
    pub(super) fn check(&self) -> Result<Filter, Failure> {
        Ok(Filter::parse(&self.list.filter, &tasks::FILTERS)?)
    }

    pub(super) fn format(&self) -> Format {
        self.list.format()
    }

    /// `--quiet` shows whole ids in docker's `service ps`, and shortened ones in its `node ps` and `stack
    /// ps`.
    pub(super) fn print(&self, views: Vec<TaskView>, whole_ids: bool) -> Result<(), Failure> {
        let show = tasks::Show {
            trunc: !(self.no_trunc || (whole_ids && self.list.quiet)),
            resolve: !self.no_resolve,
            now: now(),
        };
        let rows = tasks::rows(views, &self.check()?, &self.format(), show);
        self.list.print(&tasks::LAYOUT, &rows)
    }
}

/// Services in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Services, by name or id
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    /// As it was at this revision's number
    #[arg(long, value_name = "NUMBER", conflicts_with = "pretty")]
    revision: Option<u64>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// A service's past.
#[derive(Debug, Args)]
pub struct History {
    /// The service, by name or id
    service: String,
    #[command(flatten)]
    list: PlainListFlags,
}

/// Two revisions of a service.
#[derive(Debug, Args)]
pub struct Diff {
    /// The service, by name or id
    service: String,
    /// The number of the older one; the one before the newer if left out
    from: Option<u64>,
    /// The number of the newer one; the current one if left out
    to: Option<u64>,
    #[command(flatten)]
    list: PlainListFlags,
}

pub(super) async fn run(api: &Api, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Create(create) => create.run(api).await,
        ServiceCommand::Ls(list) => {
            let filter = Filter::parse(&list.filter, &services::FILTERS)?;
            let views: Vec<ServiceView> = api.get(&["services"], &[]).await?;
            list.print(&services::LAYOUT, &services::rows(views, &filter))
        }
        ServiceCommand::Ps(ps) => list_tasks(api, &ps).await,
        ServiceCommand::Inspect(inspect) => inspect_services(api, &inspect).await,
        ServiceCommand::Update(update) => update.run(api).await,
        ServiceCommand::Scale(scale) => scale.run(api).await,
        ServiceCommand::Rollback(rollback) => rollback.run(api).await,
        ServiceCommand::Logs(logs) => logs.run(api).await,
        ServiceCommand::Rm(remove) => remove.run(api).await,
        ServiceCommand::Rebalance(rebalance) => rebalance.run(api).await,
        ServiceCommand::Pause(pause) => pause.run(api, "pause").await,
        ServiceCommand::Resume(resume) => resume.run(api, "resume").await,
        ServiceCommand::History(asked) => {
            let entries: Vec<HistoryEntry> = api.get(&["services", &asked.service, "history"], &[]).await?;
            asked
                .list
                .print(&history::HISTORY, &history::rows(&entries, now()))
        }
        ServiceCommand::Diff(diff) => differences(api, &diff).await,
        ServiceCommand::Attach(attach) => attach.run(api).await,
    }
}

async fn list_tasks(api: &Api, ps: &Ps) -> Result<(), Failure> {
    ps.tasks.check()?;
    let mut views = Vec::new();
    let mut failures = Vec::new();
    for service in &ps.services {
        match api
            .get::<Vec<TaskView>>(&["services", service, "tasks"], &[])
            .await
        {
            Ok(found) => views.extend(found),
            Err(error) if error.is(StatusCode::NOT_FOUND) => {
                failures.push(Failure::Outcome(format!("no such service: {service}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if failures.len() < ps.services.len() {
        ps.tasks.print(views, true)?;
    }
    Failure::all(failures)
}

async fn inspect_services(api: &Api, inspect: &Inspect) -> Result<(), Failure> {
    if let Some(number) = inspect.revision {
        let number = number.to_string();
        let mut revisions: Vec<RevisionView> = Vec::new();
        for service in &inspect.services {
            revisions.push(api.get(&["services", service, "revisions", &number], &[]).await?);
        }
        return inspect
            .inspect
            .print(&revisions, inspect::revision, |_| String::new());
    }
    let ask = |service: String| async move { api.get(&["services", &service], &[]).await };
    let pretty = |view: &ServiceView| service_pretty::pretty(view, now());
    inspect
        .inspect
        .each(&inspect.services, ask, inspect::service, pretty)
        .await
}

async fn differences(api: &Api, diff: &Diff) -> Result<(), Failure> {
    let entries: Vec<HistoryEntry> = api.get(&["services", &diff.service, "history"], &[]).await?;
    let mut numbers: Vec<u64> = entries
        .iter()
        .filter_map(|entry| match entry {
            HistoryEntry::Revision { revision, .. } => Some(revision.number),
            HistoryEntry::Webhook(_) => None,
        })
        .collect();
    numbers.sort_unstable();
    let to = diff.to.or(numbers.last().copied());
    let before = |to: u64| numbers.iter().rev().copied().find(|number| *number < to);
    let (Some(to), Some(from)) = (to, diff.from.or(to.and_then(before))) else {
        return Err(Failure::Outcome(format!(
            "service {} has one revision only: there is nothing to compare it with",
            diff.service
        )));
    };
    let (from, to) = (from.to_string(), to.to_string());
    let found: Vec<Difference> = api
        .get(
            &["services", &diff.service, "diff"],
            &[("from", &from), ("to", &to)],
        )
        .await?;
    diff.list.print(&history::DIFF, &history::diff_rows(&found))
}
