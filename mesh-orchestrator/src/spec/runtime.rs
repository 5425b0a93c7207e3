//! What a service's tasks run as: containers, or the mesh agent itself (a managed service).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a task runs as on its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskRuntime {
    /// A container.
    #[default]
    Container,
    /// The node's agent, running the program `/mesh-agent` of the image.
    Agent,
}

impl TaskRuntime {
    /// Whether it is the default, which is not serialized so that older releases can read the specification.
    #[must_use]
    pub fn is_container(&self) -> bool {
        *self == Self::Container
    }

    /// The runtime's name in a specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Agent => "agent",
        }
    }
}
