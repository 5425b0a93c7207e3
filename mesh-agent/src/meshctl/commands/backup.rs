//! `meshctl backup`.

use std::{
    collections::BTreeSet,
    io::{self, BufRead},
};

use clap::{Args, Subcommand};
use mesh_orchestrator::api::types::{BackupDetail, BackupView, RestoreRequest, ServiceView};
use serde_json::{Value, json};

use super::{InspectFlags, PlainListFlags, as_it_is, now, print, say};
use crate::meshctl::{client::Api, failure::Failure, views::operator};

/// Backups of the orchestrator's store.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Create a backup
    Create,
    /// List backups
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// Verify a backup and show its contents
    Inspect(Inspect),
    /// Restore the store from a backup
    Restore(Restore),
}

/// Backups in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Backups, by name
    #[arg(required = true, value_name = "BACKUP")]
    backups: Vec<String>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// A backup to restore.
#[derive(Debug, Args)]
pub struct Restore {
    /// Replace everything in the store; without this flag, only a store without services is restored
    #[arg(long)]
    replace: bool,
    /// Do not prompt for confirmation
    #[arg(long, short)]
    force: bool,
    /// The backup's name
    #[arg(value_name = "BACKUP")]
    backup: String,
}

pub(super) async fn run(api: &Api, command: BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::Create => {
            let made: BackupView = api.post(&["backups"], &json!({})).await?;
            say(&made.name)
        }
        BackupCommand::Ls(list) => {
            let backups: Vec<BackupView> = api.get(&["backups"], &[]).await?;
            list.print(&operator::BACKUPS, &operator::backup_rows(backups, now()))
        }
        BackupCommand::Inspect(asked) => {
            let ask = |backup: String| async move { api.get(&["backups", &backup], &[]).await };
            let names = &asked.backups;
            asked
                .inspect
                .each(names, ask, as_it_is::<BackupDetail>, operator::backup_pretty)
                .await
        }
        BackupCommand::Restore(asked) => restore(api, &asked).await,
    }
}

async fn restore(api: &Api, asked: &Restore) -> Result<(), Failure> {
    let Restore {
        replace,
        force,
        backup,
    } = asked;
    if *replace && !force {
        let detail: BackupDetail = api.get(&["backups", backup], &[]).await?;
        let known: Vec<ServiceView> = api.get(&["services"], &[]).await?;
        let known = known.iter().map(|view| view.spec.name.as_str());
        print(&warning(backup, &detail.content.services, known.collect()))?;
        if !is_confirmed(io::stdin().lock())? {
            // Docker exits with 0 and no message here, but a script must notice that nothing was restored.
            return Err(Failure::Outcome(format!(
                "{backup} was not restored, and nothing was changed: answer y, or use --force"
            )));
        }
    }
    let path = ["backups", backup, "restore"];
    let _: Value = api.post(&path, &RestoreRequest { replace: *replace }).await?;
    say(backup)
}

/// What would be lost, and docker's confirmation question.
fn warning(backup: &str, kept: &[String], known: BTreeSet<&str>) -> String {
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
        "WARNING! {backup} will replace everything in the orchestrator's store. This will remove:\n{services}  - all \
         changes since the backup was created\nAre you sure you want to continue? [y/N] "
    )
}

/// Whether the first line of an answer confirms, by docker's rules.
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
    fn the_question_names_services_that_would_be_removed() {
        let kept = ["web".to_owned()];
        let text = warning("s", &kept, BTreeSet::from(["web", "db", "api"]));
        assert!(
            text.contains("not in it: api, db\n") && text.ends_with("continue? [y/N] "),
            "{text}"
        );
        assert!(!warning("s", &kept, BTreeSet::from(["web"])).contains("not in it"));
    }
}
