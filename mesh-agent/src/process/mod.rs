//! The agent's process: how it ends, and its privileges. Imports nothing.

pub mod privileges;

/// How the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to stop.
    Stopped,
    /// Another program is to replace it, and takes over the data path.
    Replaced,
}
