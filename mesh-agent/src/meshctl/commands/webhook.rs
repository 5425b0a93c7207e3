//! `meshctl webhook`.

use clap::{Args, Subcommand};
use mesh_orchestrator::api::types::{WebhookCreate, WebhookPatch, WebhookView};
use serde_json::Value;

use super::{PlainListFlags, now, say, warn};
use crate::meshctl::{client::Api, failure::Failure, views::operator};

/// Webhooks of services: secret URLs that redeploy a service on POST.
#[derive(Debug, Subcommand)]
pub enum WebhookCommand {
    /// Create a webhook and print its URL; keep it secret like a password
    Create(Named),
    /// List a service's webhooks with their URLs
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Enable a webhook again
    Enable(Named),
    /// Disable a webhook; calls get the answer of one that does not exist
    Disable(Named),
    /// Remove a webhook
    #[command(visible_alias = "remove")]
    Rm(Named),
}

/// A webhook.
#[derive(Debug, Args)]
pub struct Named {
    /// The service, by name or id
    service: String,
    /// The webhook's name
    name: String,
}

/// Webhooks of a service.
#[derive(Debug, Args)]
pub struct Ls {
    /// The service, by name or id
    service: String,
    #[command(flatten)]
    list: PlainListFlags,
}

pub(super) async fn run(api: &Api, command: WebhookCommand) -> Result<(), Failure> {
    match command {
        WebhookCommand::Create(Named { service, name }) => {
            let made: WebhookView = api
                .post(&["services", &service, "webhooks"], &WebhookCreate { name })
                .await?;
            made.note.as_deref().into_iter().for_each(warn);
            say(&made.url)
        }
        WebhookCommand::Ls(Ls { service, list }) => {
            let webhooks: Vec<WebhookView> = api.get(&["services", &service, "webhooks"], &[]).await?;
            let note = webhooks.iter().find_map(|webhook| webhook.note.as_deref());
            note.into_iter().for_each(warn);
            list.print(&operator::WEBHOOKS, &operator::webhook_rows(&webhooks, now()))
        }
        WebhookCommand::Enable(named) => set(api, named, true).await,
        WebhookCommand::Disable(named) => set(api, named, false).await,
        WebhookCommand::Rm(Named { service, name }) => {
            api.delete(&["services", &service, "webhooks", &name]).await?;
            say(&name)
        }
    }
}

async fn set(api: &Api, Named { service, name }: Named, enabled: bool) -> Result<(), Failure> {
    let path = ["services", &service, "webhooks", &name];
    let _: Value = api.patch(&path, &WebhookPatch { enabled }).await?;
    say(&name)
}
