//! What takes time: bringing an image, making a container, starting, stopping and removing it. Depends on
//! the runtime and the vault; runs beside the worker's loop.

use std::{net::Ipv4Addr, sync::Arc};

use mesh_orchestrator::{
    objects::{NodeId, Task},
    secrets::{Kind, Vault, VaultError},
};
use tracing::warn;

use super::{
    agent::AgentPrograms,
    files::{FilesError, TaskFiles},
    machine::Work,
};
use crate::orchestrator::runtime::{
    ContainerFacts, ImageReference, Pulled, RegistryCredential, Runtime, RuntimeError, Wanted,
};
use crate::program::ProgramError;

/// The signal of the last resort.
const KILL: &str = "SIGKILL";

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Preparation {
    /// The container as it is now; `None` if it is gone.
    pub(super) container: Option<ContainerFacts>,
    /// Something that people should know.
    pub(super) warning: Option<String>,
    /// The programs, of a task that is the agent.
    pub(super) programs: Option<AgentPrograms>,
}

/// It was not done.
#[derive(Debug, thiserror::Error)]
pub(in crate::orchestrator) enum WorkError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("cannot make the files of its secrets and configs")]
    Files(#[from] FilesError),
    #[error("cannot read the credential for registry {registry}")]
    Credential { registry: String, source: VaultError },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl WorkError {
    /// Whether trying again helps nothing.
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

/// What is to be prepared.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) vault: Arc<Vault>,
    pub(super) files: TaskFiles,
    pub(super) node: NodeId,
    pub(super) task: Task,
    pub(super) address: Option<Ipv4Addr>,
}

/// Whether the mesh can reach a task's container: not where it has the node's network, or none.
pub(super) fn is_in_the_mesh(task: &Task) -> bool {
    !task
        .spec
        .networks
        .iter()
        .any(|network| network == "host" || network == "none")
}

/// Brings the image here and makes the container.
pub(super) async fn prepare(order: Order) -> Result<Preparation, WorkError> {
    let warning = pull(&order).await?;
    let Order {
        runtime,
        vault,
        files,
        node,
        task,
        address,
    } = order;
    let files = files.make(&task, &vault).await?;
    let wanted = Wanted {
        node: &node,
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

/// Brings the image of a task here; what people should know of it.
pub(super) async fn pull(order: &Order) -> Result<Option<String>, WorkError> {
    let task = &order.task;
    let image = &task.spec.container_spec.image;
    let credential = credential(&order.vault, image).await?;
    match order.runtime.pull(image, credential.as_ref()).await? {
        Pulled::Fresh => Ok(None),
        Pulled::Local(reason) => {
            warn!(task = task.name(), image, reason, "using the image that is here");
            Ok(Some(format!("the image that was here is used: {reason}")))
        }
    }
}

/// Does something else with a container.
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

/// What the vault has for the registry of an image.
pub(in crate::orchestrator) async fn credential(
    vault: &Vault,
    image: &str,
) -> Result<Option<RegistryCredential>, WorkError> {
    let registry = ImageReference::parse(image).registry();
    let failed = |source| WorkError::Credential {
        registry: registry.to_owned(),
        source,
    };
    match vault.reveal(Kind::RegistryCredential, registry).await {
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
