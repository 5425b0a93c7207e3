//! The admin socket's API with its server and client. Reads the agent through [`Introspect`], and commands it
//! through [`control`].

pub(crate) mod access;
mod answered;
pub mod api;
pub mod client;
pub mod clients;
pub mod control;
mod drained;
mod drains;
mod examined;
mod explain;
mod firewall;
mod flows;
mod forwarding;
pub mod health;
pub(crate) mod labels;
mod limits;
mod monitor;
mod ports;
mod relayed;
pub mod routes;
pub mod server;
mod socket;
pub mod status;
pub mod view;
mod waiting;

#[cfg(feature = "orchestrator")]
pub(crate) use client::connect_failure;
pub use client::{Client, ClientError};
pub use control::Control;
pub use relayed::Relayed;
pub use server::AdminServer;
pub use socket::ServerError;
pub(crate) use socket::ensure_folder;
pub use view::{Introspect, View};
pub use waiting::serve_waiting;

/// The default path of the admin socket.
pub const DEFAULT_SOCKET: &str = "/run/mesh/admin.sock";
