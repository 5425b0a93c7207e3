//! `meshctl config`.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{ConfigCreate, ConfigView},
    secrets::Kind,
};

use super::{InspectFlags, ListFlags, now, read_file, remove_each, say};
use crate::meshctl::{
    client::Api,
    failure::Failure,
    flags::fields,
    views::{files, filter::Filter, inspect},
};

/// Docker's commands for configs.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Create a config from a file or STDIN
    Create(Create),
    /// List configs
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Display detailed information on one or more configs
    Inspect(Inspect),
    /// Remove one or more configs
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// A new config.
#[derive(Debug, Args)]
pub struct Create {
    /// Config labels
    #[arg(long, short = 'l', value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Its name
    name: String,
    /// The file with what is in it; `-` is standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

/// Configs in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Configs, by name or id
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<String>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// Configs to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Configs, by name or id
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<String>,
}

pub(super) async fn run(api: &Api, command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Create(create) => {
            let labels = fields::labels(&create.label).map_err(Failure::Usage)?;
            let data = read_file(&create.file, Kind::Config.max_bytes())?;
            let body = ConfigCreate {
                name: create.name,
                labels,
                data: STANDARD.encode(data).into(),
            };
            let made: ConfigView = api.post(&["configs"], &body).await?;
            say(&made.id)
        }
        ConfigCommand::Ls(list) => {
            let filter = Filter::parse(&list.filter, &files::FILTERS)?;
            let configs: Vec<ConfigView> = api.get(&["configs"], &[]).await?;
            list.print(&files::CONFIGS, &files::config_rows(configs, &filter, now()))
        }
        ConfigCommand::Inspect(asked) => {
            let ask = |config: String| async move { api.get(&["configs", &config], &[]).await };
            let pretty = |config: &ConfigView| {
                let data = STANDARD.decode(config.data.as_deref().unwrap_or_default());
                files::config_pretty(config, &data.unwrap_or_default())
            };
            asked
                .inspect
                .each(&asked.configs, ask, inspect::config, pretty)
                .await
        }
        ConfigCommand::Rm(remove) => remove_each(api, "configs", &remove.configs).await,
    }
}
