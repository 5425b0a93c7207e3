//! The agent's window: the admin socket's API, its server and client. Reads the agent through
//! [`Introspect`] and changes nothing.

pub mod view;

pub use view::{Introspect, View};
