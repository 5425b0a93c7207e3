//! The small server that the lab's services run, and its client. The program is static and needs nothing of
//! the mesh, so that it runs in a container without any other file.

pub mod bench;
pub mod client;
pub mod flood;
pub mod inject;
pub mod load;
pub mod pattern;
pub mod server;
pub mod shield;
pub mod stranger;
