//! `meshctl secret`.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{KeyRotation, KeyRotationRequest, SecretCreate, SecretView},
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
    /// Replace the key that encrypts secrets, configs and credentials
    ///
    /// Where there are several nodes, the first call adds a key to this node's key file. Copy that file
    /// to all nodes, then call it again with --finish. Backups made before need a copy of the earlier
    /// file.
    RotateKey(RotateKey),
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

/// A new key.
#[derive(Debug, Args)]
pub struct RotateKey {
    /// Use the new key: all nodes have the key file with it
    #[arg(long)]
    finish: bool,
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
        SecretCommand::RotateKey(RotateKey { finish }) => {
            let rotated: KeyRotation = api
                .post(&["secrets-key", "rotate"], &KeyRotationRequest { finish })
                .await?;
            let KeyRotation {
                finished,
                key,
                file,
                encrypted,
            } = rotated;
            say(&match finished {
                true => format!("The key {key} is in use; {encrypted} values were encrypted with it"),
                false => format!(
                    "Added the key {key} to {file}: copy this file to all nodes, then run meshctl secret rotate-key --finish"
                ),
            })
        }
        SecretCommand::Rm(remove) => remove_each(api, "secrets", &remove.secrets).await,
    }
}
