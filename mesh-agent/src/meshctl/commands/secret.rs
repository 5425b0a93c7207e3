//! `meshctl secret`.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{SecretCreate, SecretView},
    secrets::Kind,
};

use super::{InspectFlags, ListFlags, now, read_file, remove_each, say};
use crate::meshctl::{
    client::Api,
    failure::Failure,
    flags::fields,
    views::{files, filter::Filter, inspect},
};

/// Docker's commands for secrets.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Create a secret from a file or STDIN as content
    Create(Create),
    /// List secrets
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more secrets
    Inspect(Inspect),
    /// Remove one or more secrets
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// A new secret.
#[derive(Debug, Args)]
pub struct Create {
    /// Secret labels
    #[arg(long, short = 'l', value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Its name
    name: String,
    /// The file with what is in it; `-` is standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

/// Secrets in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Secrets, by name or id
    #[arg(required = true, value_name = "SECRET")]
    secrets: Vec<String>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// Secrets to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Secrets, by name or id
    #[arg(required = true, value_name = "SECRET")]
    secrets: Vec<String>,
}

pub(super) async fn run(api: &Api, command: SecretCommand) -> Result<(), Failure> {
    match command {
        SecretCommand::Create(create) => {
            let labels = fields::labels(&create.label).map_err(Failure::Usage)?;
            let data = read_file(&create.file, Kind::Secret.max_bytes())?;
            let body = SecretCreate {
                name: create.name,
                labels,
                data: STANDARD.encode(data).into(),
            };
            let made: SecretView = api.post(&["secrets"], &body).await?;
            say(&made.id)
        }
        SecretCommand::Ls(list) => {
            let filter = Filter::parse(&list.filter, &files::FILTERS)?;
            let secrets: Vec<SecretView> = api.get(&["secrets"], &[]).await?;
            list.print(&files::SECRETS, &files::secret_rows(secrets, &filter, now()))
        }
        SecretCommand::Inspect(asked) => {
            let ask = |secret: String| async move { api.get(&["secrets", &secret], &[]).await };
            asked
                .inspect
                .each(&asked.secrets, ask, inspect::secret, files::secret_pretty)
                .await
        }
        SecretCommand::Rm(remove) => remove_each(api, "secrets", &remove.secrets).await,
    }
}
