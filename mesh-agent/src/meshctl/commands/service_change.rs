//! What changes services: `create`, `update`, `scale`, `rollback`, `rm`, `rebalance`, `pause`, `resume`,
//! `attach`.

use std::time::Duration;

use clap::Args;
use mesh_orchestrator::{
    api::types::{RollbackRequest, ScaleRequest, ServiceChanged, ServiceView},
    spec::ServiceMode,
};
use reqwest::StatusCode;

use super::{each, say, warn_all, with_surroundings};
use crate::meshctl::{
    client::{Api, ApiError},
    failure::Failure,
    flags::{CreateFlags, UpdateFlags, fields},
    progress::{Removed, Wait, WaitFlags, wait_for_removal, wait_for_services},
    signals::interrupted,
};

/// How often an update is tried again when somebody else was faster.
const ATTEMPTS: u32 = 5;

/// A new service.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    flags: CreateFlags,
    #[command(flatten)]
    wait: WaitFlags,
    /// The image, and the command that replaces the image's; flags stand before
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    image: Vec<String>,
}

impl Create {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let Some((image, arguments)) = self.image.split_first() else {
            return Err(Failure::Usage("an image is needed".into()));
        };
        let suffix: String = std::iter::repeat_with(fastrand::alphanumeric)
            .map(|character| character.to_ascii_lowercase())
            .take(6)
            .collect();
        let spec = with_surroundings(|surroundings| {
            Ok(self
                .flags
                .specification(image, arguments, &suffix, surroundings)?)
        })?;
        let query = resolving(self.flags.resolves_image());
        let created: ServiceChanged = api.post_with(&["services"], query, &spec).await?;
        finish(
            api,
            created.id.as_str(),
            created.id.as_str(),
            &created,
            self.wait.wait(),
        )
        .await
    }
}

/// The query of a change that may have the image's tag replaced by its digest.
pub(super) fn resolving(resolve: Option<bool>) -> &'static [(&'static str, &'static str)] {
    match resolve {
        None => &[],
        Some(true) => &[("resolve_image", "true")],
        Some(false) => &[("resolve_image", "false")],
    }
}

/// Says what was changed, and waits for it if that is wanted.
async fn finish(
    api: &Api,
    service: &str,
    shown: &str,
    changed: &ServiceChanged,
    wait: Option<Wait>,
) -> Result<(), Failure> {
    warn_all(changed.warnings.as_deref());
    say(shown)?;
    match wait {
        Some(wait) => wait_for_services(api, &[service.to_owned()], wait).await,
        None => Ok(()),
    }
}

/// A changed service.
#[derive(Debug, Args)]
pub struct Update {
    /// Roll back to the previous specification
    #[arg(long)]
    rollback: bool,
    #[command(flatten)]
    flags: UpdateFlags,
    #[command(flatten)]
    wait: WaitFlags,
    /// The service, by name or id
    service: String,
}

impl Update {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let service = &self.service;
        if self.rollback {
            if !self.flags.is_empty() {
                return Err(Failure::Usage(
                    "other flags may not be combined with --rollback".into(),
                ));
            }
            let changed = roll_back(api, service, None).await?;
            return finish(api, service, service, &changed, self.wait.wait()).await;
        }
        let changed = self.change(api).await?;
        finish(api, service, service, &changed, self.wait.wait()).await
    }

    /// The flags say what shall be different, so that they hold for whatever is current.
    async fn change(&self, api: &Api) -> Result<ServiceChanged, Failure> {
        let mut attempt = 1;
        loop {
            let view: ServiceView = api.get(&["services", &self.service], &[]).await?;
            let mut spec = (*view.spec).clone();
            with_surroundings(|surroundings| Ok(self.flags.apply(&mut spec, surroundings)?))?;
            let revision = view.revision.to_string();
            let query = resolving(self.flags.resolves_image());
            let answer = api
                .put_with(&["services", view.id.as_str()], query, Some(&revision), &spec)
                .await;
            match answer {
                Err(error) if error.is(StatusCode::PRECONDITION_FAILED) && attempt < ATTEMPTS => attempt += 1,
                answer => return Ok(answer?),
            }
        }
    }
}

/// Numbers of tasks.
#[derive(Debug, Args)]
pub struct Scale {
    #[command(flatten)]
    wait: WaitFlags,
    /// Services with the number of tasks that they shall have
    #[arg(required = true, value_name = "SERVICE=REPLICAS", value_parser = scale_specifier)]
    services: Vec<(String, u32)>,
}

fn scale_specifier(text: &str) -> Result<(String, u32), String> {
    match text.split_once('=') {
        Some((service, replicas)) if !service.is_empty() => match replicas.parse() {
            Ok(replicas) => Ok((service.to_owned(), replicas)),
            Err(_) => Err(format!(
                "{service}: invalid replicas value {replicas}: use a number"
            )),
        },
        _ => Err(format!("invalid scale specifier '{text}': use SERVICE=REPLICAS")),
    }
}

impl Scale {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let mut failures = Vec::new();
        let mut scaled = Vec::new();
        for (service, replicas) in &self.services {
            match scale(api, service, *replicas).await {
                Ok(changed) => {
                    warn_all(changed.warnings.as_deref());
                    say(&format!("{service} scaled to {replicas}"))?;
                    scaled.push(service.clone());
                }
                Err(error) => failures.push(Failure::Outcome(format!(
                    "{service}: {}",
                    mesh_support::error_chain(&error)
                ))),
            }
        }
        if let Some(wait) = self.wait.wait()
            && let Err(failure) = wait_for_services(api, &scaled, wait).await
        {
            failures.push(failure);
        }
        Failure::all(failures)
    }
}

async fn scale(api: &Api, service: &str, replicas: u32) -> Result<ServiceChanged, ApiError> {
    api.post(&["services", service, "scale"], &ScaleRequest { replicas })
        .await
}

/// The way back.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The number of the revision to go back to [default: the previous specification]
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    #[command(flatten)]
    wait: WaitFlags,
    /// The service, by name or id
    service: String,
}

impl Rollback {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let changed = roll_back(api, &self.service, self.revision).await?;
        finish(api, &self.service, &self.service, &changed, self.wait.wait()).await
    }
}

async fn roll_back(api: &Api, service: &str, revision: Option<u64>) -> Result<ServiceChanged, ApiError> {
    api.post(&["services", service, "rollback"], &RollbackRequest { revision })
        .await
}

/// Services to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Exit immediately instead of waiting for the tasks to stop
    #[arg(long, short = 'd', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    detach: Option<bool>,
    /// Services, by name or id
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Remove {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        remove(api, &self.services, self.detach != Some(true)).await
    }
}

/// Removes services, all of them though some cannot be; prints those that were.
async fn remove(api: &Api, services: &[String], wait: bool) -> Result<(), Failure> {
    let mut failures = Vec::new();
    let mut removed = Vec::new();
    for service in services {
        match Removed::remove(api, service, service).await {
            Ok(one) => {
                say(service)?;
                removed.push(one);
            }
            Err(error) => failures.push(error.into()),
        }
    }
    if wait && let Err(failure) = wait_for_removal(api, removed, Wait::default()).await {
        failures.push(failure);
    }
    Failure::all(failures)
}

/// Removes services that were looked up.
pub(super) async fn remove_quietly(api: &Api, services: &[ServiceView], wait: bool) -> Result<(), Failure> {
    let mut removed = Vec::new();
    for view in services {
        removed.push(Removed::remove(api, view.id.as_str(), &view.spec.name).await?);
    }
    if wait {
        wait_for_removal(api, removed, Wait::default()).await?;
    }
    Ok(())
}

/// Services to spread anew.
#[derive(Debug, Args)]
pub struct Rebalance {
    #[command(flatten)]
    wait: WaitFlags,
    /// Services, by name or id
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Rebalance {
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        with_each(api, &self.services, "rebalance").await?;
        let Some(wait) = self.wait.wait() else {
            return Ok(());
        };
        let moved = async {
            for service in &self.services {
                while api
                    .get::<ServiceView>(&["services", service], &[])
                    .await?
                    .rebalancing
                {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
            Ok::<_, ApiError>(())
        };
        tokio::select! {
            moved = moved => moved?,
            signal = interrupted() => {
                eprintln!("Operation continuing in background.");
                return Err(Failure::Signal(signal));
            }
        }
        wait_for_services(api, &self.services, wait).await
    }
}

/// Services to pause or to resume.
#[derive(Debug, Args)]
pub struct Switch {
    #[command(flatten)]
    wait: WaitFlags,
    /// Services, by name or id
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Switch {
    /// Does the action, `pause` or `resume`.
    pub(super) async fn run(&self, api: &Api, action: &str) -> Result<(), Failure> {
        with_each(api, &self.services, action).await?;
        match self.wait.wait() {
            Some(wait) => wait_for_services(api, &self.services, wait).await,
            None => Ok(()),
        }
    }
}

/// A service that lives as long as this process.
#[derive(Debug, Args)]
pub struct Attach {
    /// The service, by name or id
    service: String,
}

impl Attach {
    /// For units: ready is when the service is, and the end of the unit pauses it.
    pub(super) async fn run(&self, api: &Api) -> Result<(), Failure> {
        let view: ServiceView = api.get(&["services", &self.service], &[]).await?;
        let can_pause = matches!(view.spec.mode, ServiceMode::Replicated(_));
        if can_pause {
            self.ask(api, "resume").await?;
        }
        match self.wait(api).await {
            Ok(()) => {
                notify(sd_notify::NotifyState::Ready)?;
                interrupted().await;
            }
            // Told to stop before it was ready.
            Err(Failure::Signal(_)) => {}
            Err(failure) => return Err(failure),
        }
        notify(sd_notify::NotifyState::Stopping)?;
        if !can_pause {
            return Ok(());
        }
        self.ask(api, "pause").await?;
        self.wait(api).await
    }

    async fn ask(&self, api: &Api, action: &str) -> Result<(), ApiError> {
        let _: serde_json::Value = api
            .post(&["services", &self.service, action], &serde_json::json!({}))
            .await?;
        Ok(())
    }

    async fn wait(&self, api: &Api) -> Result<(), Failure> {
        wait_for_services(api, std::slice::from_ref(&self.service), Wait::default()).await
    }
}

/// Does nothing where systemd did not start this process.
fn notify(state: sd_notify::NotifyState<'_>) -> Result<(), Failure> {
    sd_notify::notify(&[state]).map_err(Failure::io("cannot tell systemd how the service is"))
}

/// Sends one request for each service.
async fn with_each(api: &Api, services: &[String], action: &str) -> Result<(), Failure> {
    each(services, |service| async move {
        let _: serde_json::Value = api
            .post(&["services", &service, action], &serde_json::json!({}))
            .await?;
        Ok(service)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_specifiers_are_dockers() {
        assert_eq!(scale_specifier("web=3"), Ok(("web".to_owned(), 3)));
        for text in ["web", "web=", "=3", "web=many", "web=-1"] {
            assert!(scale_specifier(text).is_err(), "{text}");
        }
    }
}
