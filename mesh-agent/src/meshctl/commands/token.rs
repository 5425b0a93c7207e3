//! `meshctl token`.

use std::time::Duration;

use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{Grant, Scope, TokenCreate, TokenCreated, TokenView},
    spec::PortRange,
};

use super::{PlainListFlags, now, remove_each, say};
use crate::meshctl::{client::Api, failure::Failure, flags::units, views::operator};

/// Tokens for the HTTP API.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token and print it; it is never shown again
    Create(Create),
    /// List tokens
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// Remove one or more tokens
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// A new token.
#[derive(Debug, Args)]
pub struct Create {
    /// What it allows: all, or <kind>:read or <kind>:write such as services:write
    #[arg(long, required = true, value_name = "SCOPE", value_delimiter = ',')]
    scope: Vec<Scope>,
    /// What its services may have beyond ordinary containers: bind:/folder, host-network, capability:NAME,
    /// device:/dev/name
    #[arg(long, value_name = "PERMISSION", value_delimiter = ',')]
    allow: Vec<Grant>,
    /// The only ports that its services may publish, such as 443,8000-8099 [default: any]
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    ports: Option<Vec<PortRange>>,
    /// What the names of the secrets that its services may have begin with, such as web-,shared-; '' for none
    /// [default: any]
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    secrets: Option<Vec<String>>,
    /// The same of configs
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    configs: Option<Vec<String>>,
    /// Time until it expires (ms|s|m|h) [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    expires: Option<Duration>,
    /// Its name
    name: String,
}

/// Tokens to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Tokens, by name
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
}

pub(super) async fn run(api: &Api, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(create) => {
            let body = TokenCreate {
                name: create.name,
                scopes: create.scope,
                allow: create.allow,
                ports: create.ports,
                secrets: prefixes(create.secrets),
                configs: prefixes(create.configs),
                expires_at: create.expires.map(|time| now() + time),
            };
            let made: TokenCreated = api.post(&["tokens"], &body).await?;
            say(made.token.expose())
        }
        TokenCommand::Ls(list) => {
            let tokens: Vec<TokenView> = api.get(&["tokens"], &[]).await?;
            list.print(&operator::TOKENS, &operator::token_rows(&tokens, now()))
        }
        TokenCommand::Rm(remove) => remove_each(api, "tokens", &remove.tokens).await,
    }
}

/// An empty text stands for no name at all.
fn prefixes(given: Option<Vec<String>>) -> Option<Vec<String>> {
    given.map(|texts| texts.into_iter().filter(|text| !text.is_empty()).collect())
}
