//! What the tests and benchmarks of the agent share: a node with the data path loaded, and frames to feed it.
//!
//! A failure panics, as it does in the tests that use this.

pub mod cluster;
pub mod frames;
pub mod fuzz;
pub mod idle;
pub mod node;
pub mod run;
