//! What `cargo xtask` does, as a library, so that the end-to-end tests drive the same lab. Imports
//! nothing of the mesh: it builds and runs the agent like any user would.

pub mod bench;
pub mod build;
pub mod chaos;
pub mod check;
pub mod command;
pub mod demo;
pub mod fuzz;
pub mod lab;
pub mod paths;
pub mod phases;
pub mod programs;
pub mod setup;
pub mod suite;
pub mod test_binaries;
pub mod tidy;
pub mod vm;
