//! `meshctl managed`: the cluster's own services. The only one is the mesh agent itself, for the orchestrator
//! a global service whose tasks have the runtime `agent`.

use clap::{Args, Subcommand, ValueEnum};
use mesh_orchestrator::{
    api::types::{ServiceChanged, ServiceView, TaskView},
    objects::UpdateState,
    spec::{FailureAction, Global, RestartPolicy, ServiceMode, ServiceSpec, TaskRuntime},
};
use reqwest::StatusCode;
use serde_json::Value;

use super::{PlainListFlags, say, service_change, warn_all};
use crate::meshctl::{
    client::{Api, ApiError},
    failure::Failure,
    flags::{empty, fields},
    output::{Layout, people::image},
    progress::{Wait, wait_for_services},
    views::services,
};

/// How often an update is tried when others change the service at the same time.
const ATTEMPTS: u32 = 5;
/// How often a task whose program failed its trial is replaced.
const RESTARTS: u32 = 2;

/// The list of managed services.
const LAYOUT: Layout = Layout {
    fields: &[
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Replicas", "REPLICAS"),
        ("Update", "UPDATE"),
    ],
    table: r"{{.Name}}\t{{.Image}}\t{{.Replicas}}\t{{.Update}}",
    quiet: "{{.Name}}",
    raw: &[],
};

/// Commands for the cluster's own services.
#[derive(Debug, Subcommand)]
pub enum ManagedCommand {
    /// Deploy or update a managed service on every node, without interrupting traffic or tasks
    ///
    /// Each node in turn extracts the program from the image, tests it and switches to it. A node where it
    /// fails goes back to its previous program, and the update is rolled back.
    Deploy(Deploy),
    /// List managed services
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// Remove a managed service; the nodes keep running their current program
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// The managed services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ManagedService {
    /// The mesh agent of every node
    LoadBalancer,
}

impl ManagedService {
    fn name(self) -> &'static str {
        match self {
            Self::LoadBalancer => "load-balancer",
        }
    }
}

/// A managed service to deploy or to update.
#[derive(Debug, Args)]
pub struct Deploy {
    /// What to deploy
    #[arg(value_enum)]
    service: ManagedService,
    /// The image with the program /mesh-agent [default: the service's current one]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Exit immediately instead of waiting for all nodes
    #[arg(long, short = 'd', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    detach: Option<bool>,
    /// Suppress progress output
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// A managed service to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// What to remove
    #[arg(value_enum)]
    service: ManagedService,
}

pub(super) async fn run(api: &Api, command: ManagedCommand) -> Result<(), Failure> {
    let done = match command {
        ManagedCommand::Deploy(deploy) => deploy.run(api).await,
        ManagedCommand::Ls(list) => ls(api, &list).await,
        ManagedCommand::Rm(remove) => {
            let name = remove.service.name();
            let view = find(api, name).await?;
            let view = view.ok_or_else(|| Failure::Outcome(format!("{name} is not deployed")))?;
            service_change::remove_quietly(api, &[view], true).await?;
            say(name)
        }
    };
    done.map_err(in_a_swarm)
}

/// Without the orchestrator, points to the command that does the same in a Swarm.
fn in_a_swarm(failure: Failure) -> Failure {
    match failure {
        Failure::Api(ApiError::NoOrchestrator { .. }) => Failure::Outcome(
            "this node's agent runs without the orchestrator: in a Swarm, 'docker stack deploy -c deploy/stack.yml \
             mesh' deploys and updates the agent on every node"
                .to_owned(),
        ),
        other => other,
    }
}

impl Deploy {
    async fn run(&self, api: &Api) -> Result<(), Failure> {
        let name = self.service.name();
        let changed = self.change(api, name).await?;
        warn_all(changed.warnings.as_deref());
        say(name)?;
        if self.detach == Some(true) {
            return Ok(());
        }
        let wait = Wait {
            quiet: self.quiet,
            // A rollback means that it was not deployed.
            fail_on_rollback: true,
        };
        match wait_for_services(api, &[name.to_owned()], wait).await {
            Err(Failure::Outcome(message)) => Err(Failure::Outcome(match self.reason(api, name).await {
                Some(reason) => format!("{message}; {reason}"),
                None => message,
            })),
            ended => ended,
        }
    }

    /// The last error of a task with the image.
    async fn reason(&self, api: &Api, name: &str) -> Option<String> {
        let tasks: Vec<TaskView> = api.get(&["services", name, "tasks"], &[]).await.ok()?;
        let is_meant = |view: &&TaskView| {
            let image = &view.task.spec.container_spec.image;
            self.image.as_ref().is_none_or(|given| image.starts_with(given))
        };
        let failed = tasks.iter().filter(is_meant);
        let failed = failed.filter(|view| view.task.status.error.is_some());
        let last = failed.max_by_key(|view| view.task.status.at)?;
        let node = last.node_hostname.as_deref().unwrap_or("a node");
        Some(format!("{node}: {}", last.task.status.error.as_deref()?))
    }

    async fn change(&self, api: &Api, name: &str) -> Result<ServiceChanged, Failure> {
        let mut attempt = 1;
        loop {
            let answer = match (find(api, name).await?, &self.image) {
                (None, None) => {
                    return Err(Failure::Usage(format!(
                        "{name} was never deployed: set its image with --image"
                    )));
                }
                (None, Some(image)) => api.post(&["services"], &specification(name, image)).await,
                (Some(view), image) => {
                    let mut spec = (*view.spec).clone();
                    renew(&mut spec, image.as_deref());
                    let revision = view.revision.to_string();
                    api.put(&["services", view.id.as_str()], Some(&revision), &spec)
                        .await
                }
            };
            match answer {
                Err(error) if error.is(StatusCode::PRECONDITION_FAILED) && attempt < ATTEMPTS => attempt += 1,
                answer => return Ok(answer?),
            }
        }
    }
}

/// The service as it is, if there is one.
async fn find(api: &Api, name: &str) -> Result<Option<ServiceView>, Failure> {
    let view: ServiceView = match api.get(&["services", name], &[]).await {
        Ok(view) => view,
        Err(error) if error.is(StatusCode::NOT_FOUND) => return Ok(None),
        Err(error) => return Err(in_a_swarm(error.into())),
    };
    if view.spec.task_template.runtime == TaskRuntime::Agent {
        return Ok(Some(view));
    }
    Err(Failure::Outcome(format!(
        "a service of containers is already named {name}: remove it, or deploy it under another name, first"
    )))
}

/// A service that is updated one node at a time, and rolled back if one fails.
fn specification(name: &str, image: &str) -> ServiceSpec {
    let mut spec = empty(name.to_owned(), image);
    spec.mode = ServiceMode::Global(Global {});
    spec.update_config.failure_action = FailureAction::Rollback;
    let task = std::sync::Arc::make_mut(&mut spec.task_template);
    task.runtime = TaskRuntime::Agent;
    task.restart_policy = RestartPolicy {
        max_attempts: RESTARTS,
        ..RestartPolicy::default()
    };
    spec
}

/// Sets another image, or rolls the same one again: a node that already runs its program does nothing.
fn renew(spec: &mut ServiceSpec, image: Option<&str>) {
    let task = std::sync::Arc::make_mut(&mut spec.task_template);
    if let Some(image) = image {
        image.clone_into(&mut task.container_spec.image);
    }
    task.force_update += 1;
}

async fn ls(api: &Api, list: &PlainListFlags) -> Result<(), Failure> {
    let mut views: Vec<ServiceView> = api.get(&["services"], &[]).await?;
    views.retain(|view| view.spec.task_template.runtime == TaskRuntime::Agent);
    let rows: Vec<Value> = views.iter().map(row).collect();
    list.print(&LAYOUT, &rows)
}

fn row(view: &ServiceView) -> Value {
    let update = view
        .update_status
        .as_ref()
        .map_or("", |status| match status.state {
            UpdateState::Updating => "updating",
            UpdateState::Paused => "paused",
            UpdateState::Completed => "completed",
            UpdateState::RollbackStarted => "rollback started",
            UpdateState::RollbackPaused => "rollback paused",
            UpdateState::RollbackCompleted => "rollback completed",
        });
    LAYOUT.row([
        view.spec.name.as_str().into(),
        image(&view.spec.task_template.container_spec.image).into(),
        services::replicas(view).into(),
        update.into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployed_specification_is_valid() {
        let mut spec = specification("load-balancer", "mesh-agent:2")
            .validated()
            .unwrap();
        assert_eq!(spec.task_template.runtime, TaskRuntime::Agent);
        let before = spec.clone();
        renew(&mut spec, None);
        assert_ne!(spec.task_template, before.task_template, "each deployment rolls");
        renew(&mut spec, Some("mesh-agent:3"));
        assert_eq!(spec.task_template.container_spec.image, "mesh-agent:3");
    }

    #[test]
    fn users_of_a_swarm_are_pointed_to_dockers_command() {
        let failure = in_a_swarm(Failure::Api(ApiError::NoOrchestrator {
            socket: "/run/mesh/admin.sock".into(),
        }));
        assert!(
            failure
                .to_string()
                .contains("docker stack deploy -c deploy/stack.yml mesh")
        );
        assert_eq!(failure.exit_code(), 1);
    }
}
