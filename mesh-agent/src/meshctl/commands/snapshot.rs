//! `meshctl snapshot`.

use clap::{Args, Subcommand};
use mesh_orchestrator::api::types::{RestoreRequest, SnapshotDetail, SnapshotView};
use serde_json::{Value, json};

use super::{InspectFlags, PlainListFlags, as_it_is, now, say};
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
    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

pub(super) async fn run(api: &Api, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create => {
            let made: SnapshotView = api.post(&["snapshots"], &json!({})).await?;
            say(&made.name)
        }
        SnapshotCommand::Ls(list) => {
            let snapshots: Vec<SnapshotView> = api.get(&["snapshots"], &[]).await?;
            list.print(&operator::SNAPSHOTS, &operator::snapshot_rows(snapshots, now()))
        }
        SnapshotCommand::Inspect(inspect) => {
            let mut snapshots: Vec<SnapshotDetail> = Vec::new();
            for snapshot in &inspect.snapshots {
                snapshots.push(api.get(&["snapshots", snapshot], &[]).await?);
            }
            inspect
                .inspect
                .print(&snapshots, as_it_is, operator::snapshot_pretty)
        }
        SnapshotCommand::Restore(Restore { replace, snapshot }) => {
            let path = ["snapshots", &snapshot, "restore"];
            let _: Value = api.post(&path, &RestoreRequest { replace }).await?;
            say(&snapshot)
        }
    }
}
