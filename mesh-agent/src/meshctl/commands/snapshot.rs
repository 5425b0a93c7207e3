//! `meshctl snapshot`.

use std::{
    collections::BTreeSet,
    io::{self, BufRead},
};

use clap::{Args, Subcommand};
use mesh_orchestrator::api::types::{BackupDetail, BackupView, RestoreRequest, ServiceView};
use serde_json::{Value, json};

use super::{InspectFlags, PlainListFlags, as_it_is, now, print, say};
use crate::meshctl::{client::Api, failure::Failure, views::operator};

/// Snapshots of all that the orchestrator keeps.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Create a snapshot
    Create,
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// Read a snapshot from end to end and show what is in it
    Inspect(Inspect),
    /// Put back what is in a snapshot
    Restore(Restore),
}

/// Snapshots in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Snapshots, by name
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// A snapshot to put back.
#[derive(Debug, Args)]
pub struct Restore {
    /// Replace what is in the store; else a store with services in it is left as it is
    #[arg(long)]
    replace: bool,
    /// Do not prompt for confirmation
    #[arg(long, short)]
    force: bool,
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

pub(super) async fn run(api: &Api, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create => {
            let made: BackupView = api.post(&["backups"], &json!({})).await?;
            say(&made.name)
        }
        SnapshotCommand::Ls(list) => {
            let snapshots: Vec<BackupView> = api.get(&["backups"], &[]).await?;
            list.print(&operator::SNAPSHOTS, &operator::snapshot_rows(snapshots, now()))
        }
        SnapshotCommand::Inspect(asked) => {
            let ask = |snapshot: String| async move { api.get(&["backups", &snapshot], &[]).await };
            let names = &asked.snapshots;
            asked
                .inspect
                .each(names, ask, as_it_is::<BackupDetail>, operator::snapshot_pretty)
                .await
        }
        SnapshotCommand::Restore(asked) => restore(api, &asked).await,
    }
}

async fn restore(api: &Api, asked: &Restore) -> Result<(), Failure> {
    let Restore {
        replace,
        force,
        snapshot,
    } = asked;
    if *replace && !force {
        let detail: BackupDetail = api.get(&["backups", snapshot], &[]).await?;
        let known: Vec<ServiceView> = api.get(&["services"], &[]).await?;
        let known = known.iter().map(|view| view.spec.name.as_str());
        print(&warning(snapshot, &detail.content.services, known.collect()))?;
        if !is_confirmed(io::stdin().lock())? {
            // Docker says nothing and ends with 0; whoever restores by a script must learn that it was not done.
            return Err(Failure::Outcome(format!(
                "{snapshot} was not restored, and nothing was changed: answer y, or use --force"
            )));
        }
    }
    let path = ["backups", snapshot, "restore"];
    let _: Value = api.post(&path, &RestoreRequest { replace: *replace }).await?;
    say(snapshot)
}

/// What would be lost, and docker's question.
fn warning(snapshot: &str, kept: &[String], known: BTreeSet<&str>) -> String {
    let lost: Vec<&str> = known
        .into_iter()
        .filter(|name| !kept.iter().any(|kept| kept == name))
        .collect();
    let services = if lost.is_empty() {
        String::new()
    } else {
        format!("  - services that are not in it: {}\n", lost.join(", "))
    };
    format!(
        "WARNING! {snapshot} will replace everything that the orchestrator keeps. This will remove:\n{services}  - all \
         changes since the snapshot was made\nAre you sure you want to continue? [y/N] "
    )
}

/// Whether the first line of an answer is docker's yes.
fn is_confirmed(mut answer: impl BufRead) -> Result<bool, Failure> {
    let mut line = String::new();
    answer
        .read_line(&mut line)
        .map_err(Failure::io("could not read the answer"))?;
    Ok(line.trim().eq_ignore_ascii_case("y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_y_confirms() {
        for (answer, confirmed) in [
            ("y\n", true),
            (" Y \n", true),
            ("yes\n", false),
            ("\ny\n", false),
            ("", false),
        ] {
            assert_eq!(is_confirmed(answer.as_bytes()).unwrap(), confirmed, "{answer:?}");
        }
    }

    #[test]
    fn the_question_names_services_that_would_go() {
        let kept = ["web".to_owned()];
        let text = warning("s", &kept, BTreeSet::from(["web", "db", "api"]));
        assert!(
            text.contains("not in it: api, db\n") && text.ends_with("continue? [y/N] "),
            "{text}"
        );
        assert!(!warning("s", &kept, BTreeSet::from(["web"])).contains("not in it"));
    }
}
