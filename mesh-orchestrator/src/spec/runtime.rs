//! What runs a service's tasks: containers, or the mesh agent itself (a managed service).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a task is on its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskRuntime {
    /// A container.
    #[default]
    Container,
    /// The node's agent, of the program that the image holds as `/mesh-agent`.
    Agent,
}

impl TaskRuntime {
    /// Whether it is what a task is unless something else is said; then it is not written, so that older releases
    /// understand the specification.
    #[must_use]
    pub fn is_container(&self) -> bool {
        *self == Self::Container
    }

    /// The name in a specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Agent => "agent",
        }
    }
}
