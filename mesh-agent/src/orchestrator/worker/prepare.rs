//! The work that takes time: pulling an image, and creating, starting, stopping and removing a container.
//! Runs beside the worker's loop.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use mesh_orchestrator::{
    objects::{NodeId, Task},
    secrets::{Kind, Secrets, VaultError},
};
use mesh_support::error_chain;
use tracing::warn;

use super::{
    agent::AgentPrograms,
    files::{FilesError, TaskFiles},
    machine::Work,
};
use crate::orchestrator::{
    program::ProgramError,
    runtime::{ContainerFacts, ImageReference, Pulled, RegistryCredential, Runtime, RuntimeError, Wanted},
};

/// The signal of the last resort.
const KILL: &str = "SIGKILL";

/// The result of a piece of work.
#[derive(Debug, Default)]
pub(super) struct Preparation {
    /// The container as it is now; `None` if it is gone.
    pub(super) container: Option<ContainerFacts>,
    /// A warning for the task's status.
    pub(super) warning: Option<String>,
    /// The programs involved, if the task's runtime is the agent.
    pub(super) programs: Option<AgentPrograms>,
}

/// Work that failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::orchestrator) enum WorkError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("cannot read the credential for registry {registry}")]
    Credential { registry: String, source: VaultError },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl WorkError {
    /// The reason for the task's status. The engine's own message stands alone: it is what users look for,
    /// and columns show only its beginning.
    pub(super) fn reason(&self) -> String {
        match self {
            // A registry's error need not name the image.
            Self::Runtime(RuntimeError::Refused {
                operation: "pull",
                subject,
                message,
            }) if !message.contains(subject.as_str()) => format!("{message} (image {subject})"),
            Self::Runtime(RuntimeError::Refused { message, .. }) => message.clone(),
            other => error_chain(other),
        }
    }

    /// Whether trying again is useless.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Runtime(RuntimeError::Refused { .. }) => true,
            Self::Runtime(RuntimeError::Unavailable(_) | RuntimeError::Gone(_)) => false,
            Self::Files(error) => !error.is_temporary(),
            Self::Program(error) => !matches!(error, ProgramError::Archive(_)),
            Self::Credential { source, .. } => {
                !matches!(source, VaultError::Store(error) if error.is_unavailable())
            }
        }
    }
}

/// A task to prepare, with what that needs.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) secrets: Arc<dyn Secrets>,
    pub(super) files: TaskFiles,
    pub(super) node: NodeId,
    pub(super) hostname: String,
    pub(super) service_labels: BTreeMap<String, String>,
    pub(super) task: Task,
    pub(super) address: Option<Ipv4Addr>,
}

/// Whether the mesh can reach a task's container: not on the host's network, nor without any.
pub(super) fn is_in_the_mesh(task: &Task) -> bool {
    !task
        .spec
        .networks
        .iter()
        .any(|network| network == "host" || network == "none")
}

/// Pulls the image and creates the container.
pub(super) async fn prepare(order: Order) -> Result<Preparation, WorkError> {
    let warning = pull(&order).await?;
    let Order {
        runtime,
        secrets,
        files,
        node,
        hostname,
        service_labels,
        task,
        address,
    } = order;
    let files = files.create(&task, secrets.as_ref()).await?;
    let wanted = Wanted {
        node: &node,
        hostname: &hostname,
        service_labels: &service_labels,
        task: &task,
        address,
        files: &files,
    };
    let id = runtime.create(wanted).await?;
    Ok(Preparation {
        container: runtime.container(&id).await?,
        warning,
        programs: None,
    })
}

/// Pulls a task's image; returns a warning if a local image is used instead.
pub(super) async fn pull(order: &Order) -> Result<Option<String>, WorkError> {
    let task = &order.task;
    let image = &task.spec.container_spec.image;
    let credential = credential(order.secrets.as_ref(), image).await?;
    match order.runtime.pull(image, credential.as_ref()).await? {
        Pulled::Fresh => Ok(None),
        Pulled::Local(reason) => {
            warn!(task = task.name(), image, reason, "using the local image");
            Ok(Some(format!("using the local image: {reason}")))
        }
    }
}

/// Does any other work with a container.
pub(super) async fn act(
    runtime: &dyn Runtime,
    container: &ContainerFacts,
    work: Work,
) -> Result<Preparation, WorkError> {
    let id = &container.id;
    match work {
        Work::Start => runtime.start(id).await?,
        Work::Signal => runtime.signal(id, &container.stop_signal).await?,
        Work::Kill => runtime.signal(id, KILL).await?,
        Work::Remove => runtime.remove(id).await?,
        Work::Prepare => {}
    }
    Ok(Preparation {
        container: runtime.container(id).await?,
        ..Preparation::default()
    })
}

/// The vault's credential for an image's registry, if there is one.
pub(in crate::orchestrator) async fn credential(
    secrets: &dyn Secrets,
    image: &str,
) -> Result<Option<RegistryCredential>, WorkError> {
    let registry = ImageReference::parse(image).registry();
    let failed = |source| WorkError::Credential {
        registry: registry.to_owned(),
        source,
    };
    match secrets.reveal(Kind::RegistryCredential, registry).await {
        Ok(plaintext) => match serde_json::from_slice(plaintext.expose()) {
            Ok(credential) => Ok(Some(credential)),
            Err(source) => Err(failed(VaultError::Damaged {
                key: registry.to_owned(),
                source,
            })),
        },
        Err(VaultError::Missing { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_reported_with_nothing_before_the_engines_message() {
        let message = "network nope not found".to_owned();
        let error = WorkError::from(RuntimeError::Refused {
            operation: "create container",
            subject: "web.1.3k5jd".into(),
            message: message.clone(),
        });
        assert_eq!(error.reason(), message);
    }
}
