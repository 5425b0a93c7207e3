//! The small server that the lab's services run, and the client that speaks to it. Its programs are
//! static and depend on nothing of the mesh, so that a container without any files can run them.

pub mod bench;
pub mod client;
pub mod inject;
pub mod load;
pub mod pattern;
pub mod server;
pub mod shield;
pub mod stranger;
