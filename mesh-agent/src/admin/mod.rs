//! The agent's window: the admin socket's API, its server and client. Reads the agent through
//! [`Introspect`]; what it may ask the agent to do is in [`control`].

pub mod api;
pub mod client;
pub mod control;
pub mod routes;
pub mod server;
pub mod status;
pub mod view;

pub(crate) use client::connect_failure;
pub use client::{Client, ClientError};
pub use control::Control;
pub use server::{AdminServer, ServerError};
pub use view::{Introspect, View};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mesh/admin.sock";
