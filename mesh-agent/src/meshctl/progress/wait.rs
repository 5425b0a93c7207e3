//! The loop that waits for services, and what ends it: the outcome, a signal, an orchestrator that is gone.

use std::time::Duration;

use clap::Args;
use mesh_orchestrator::api::types::{ServiceView, TaskView};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use super::{
    convergence::{Convergence, Outcome, Step},
    display::Display,
};
use crate::meshctl::{
    client::{Api, ApiError},
    failure::Failure,
    flags::fields,
    signals::interrupted,
};

/// Time between two looks.
const PACE: Duration = Duration::from_millis(200);

/// How long the agent may be gone while it is waited, such as for its own upgrade.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether and how it is waited.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct WaitFlags {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(long, short = 'd', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    detach: Option<bool>,
    /// Suppress progress output
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Exit with 1 if the update is rolled back
    #[arg(long)]
    fail_on_rollback: bool,
}

impl WaitFlags {
    /// What to do; none to go on at once.
    pub(crate) fn wait(self) -> Option<Wait> {
        (self.detach != Some(true)).then_some(Wait {
            quiet: self.quiet,
            fail_on_rollback: self.fail_on_rollback,
        })
    }
}

/// How it is waited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait {
    /// Nothing is shown.
    pub(crate) quiet: bool,
    /// A rolled back update is a failure.
    pub(crate) fail_on_rollback: bool,
}

/// Waits until services, by name or id, are as asked for, one after the other.
pub(crate) async fn wait_for_services(api: &Api, services: &[String], wait: Wait) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for service in services {
        let mut display = Display::new(wait.quiet);
        if services.len() > 1 {
            display.say(service);
        }
        let ended = tokio::select! {
            ended = follow(api, service, &mut display) => ended,
            signal = interrupted() => {
                display.finish();
                display.say(&format!(
                    "Operation continuing in background.\nUse `meshctl service ps {service}` to check progress."
                ));
                return Err(Failure::Signal(signal));
            }
        };
        display.finish();
        match ended? {
            Outcome::Converged | Outcome::JobComplete => {}
            Outcome::RolledBack(_) if !wait.fail_on_rollback => {}
            Outcome::RolledBack(message) => {
                failures.push(Failure::Outcome(format!(
                    "service {service} was rolled back: {message}"
                )));
            }
            Outcome::Paused(message) | Outcome::GivenUp(message) => failures.push(Failure::Outcome(message)),
        }
    }
    Failure::all(failures)
}

async fn follow(api: &Api, service: &str, display: &mut Display) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let mut convergence = Convergence::default();
    let mut gone_since = None;
    loop {
        let looked = async {
            let view: ServiceView = api.get(&["services", service], &[]).await?;
            let tasks: Vec<TaskView> = api.get(&["services", service, "tasks"], &[]).await?;
            Ok::<_, ApiError>((view, tasks))
        };
        let (view, tasks) = match patient(looked.await, &mut gone_since)? {
            Some(seen) => seen,
            None => {
                sleep(PACE).await;
                continue;
            }
        };
        let (picture, step) = convergence.observe(&view, &tasks, began.elapsed());
        display.show(&picture);
        match step {
            Step::Wait => {}
            Step::Verify(seconds) => {
                display.set(
                    "verify",
                    &format!("Waiting {seconds} seconds to verify that tasks are stable..."),
                );
            }
            Step::Unstable => display.set("verify", "Detected task failure"),
            Step::End(outcome) => {
                match &outcome {
                    Outcome::Converged => display.set("verify", &format!("Service {service} converged")),
                    Outcome::JobComplete => display.set("verify", "job complete"),
                    Outcome::RolledBack(message) => display.set("rollback", message),
                    Outcome::Paused(_) | Outcome::GivenUp(_) => {}
                }
                return Ok(outcome);
            }
        }
        sleep(PACE).await;
    }
}

/// An agent that is gone for a while is no failure yet.
fn patient<T>(looked: Result<T, ApiError>, gone_since: &mut Option<Instant>) -> Result<Option<T>, Failure> {
    match looked {
        Ok(seen) => {
            *gone_since = None;
            Ok(Some(seen))
        }
        Err(error) => {
            let passes = match &error {
                ApiError::Agent(_) | ApiError::Broken { .. } => true,
                ApiError::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
                ApiError::NoOrchestrator { .. } | ApiError::Answer { .. } => false,
            };
            if passes && gone_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                Ok(None)
            } else {
                Err(error.into())
            }
        }
    }
}

/// A service that was removed, with those of its tasks that may have had a container then.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    name: String,
    tasks: Vec<String>,
}

impl Removed {
    /// Removes a service; what can be asked of its tasks afterwards is only by their ids.
    pub(crate) async fn remove(api: &Api, service: &str, name: &str) -> Result<Self, ApiError> {
        let tasks: Vec<TaskView> = api.get(&["services", service, "tasks"], &[]).await?;
        api.delete(&["services", service]).await?;
        let tasks = tasks.iter().filter(|view| is_left(view));
        Ok(Self {
            name: name.to_owned(),
            tasks: tasks.map(|view| view.task.id.to_string()).collect(),
        })
    }
}

/// Waits until no container of removed services is left.
pub(crate) async fn wait_for_removal(api: &Api, services: Vec<Removed>, wait: Wait) -> Result<(), Failure> {
    for mut service in services {
        let mut display = Display::on_terminals(wait.quiet);
        let signal = tokio::select! {
            ended = drain(api, &mut service, &mut display) => {
                ended?;
                None
            }
            signal = interrupted() => Some(signal),
        };
        display.finish();
        if let Some(signal) = signal {
            display.say("Operation continuing in background.");
            return Err(Failure::Signal(signal));
        }
    }
    Ok(())
}

async fn drain(api: &Api, service: &mut Removed, display: &mut Display) -> Result<(), Failure> {
    let mut gone_since = None;
    while let Some(task) = service.tasks.last() {
        let looked: Result<TaskView, _> = api.get(&["tasks", task], &[]).await;
        let stopped = match looked {
            // Nobody knows of it any more.
            Err(error) if error.is(StatusCode::NOT_FOUND) => true,
            looked => patient(looked, &mut gone_since)?.is_some_and(|view| !is_left(&view)),
        };
        if stopped {
            service.tasks.pop();
            continue;
        }
        display.set(
            &service.name,
            &format!("{} tasks are stopping", service.tasks.len()),
        );
        sleep(PACE).await;
    }
    Ok(())
}

/// A container of it may still be there.
fn is_left(view: &TaskView) -> bool {
    view.task.status.state.holds_resources()
}
