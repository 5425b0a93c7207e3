//! What the orchestrator's tests and measurements share: handles on stores, simulated nodes, an etcd cluster
//! and small disks.

#![forbid(unsafe_code)]

pub mod agent;
pub mod disk;
pub mod etcd;
pub mod lab;

use std::time::Duration;

use anyhow::{Context, Result};
use mesh_orchestrator::store::Heartbeat;

/// The longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The shortest heartbeat that every store supports.
pub const QUICK: Heartbeat = Heartbeat {
    interval: Duration::from_millis(300),
    missed: 3,
};

/// Runs a story with a time limit, so that a bug cannot hang the suite.
///
/// # Errors
/// The story's, or that it did not end in time.
pub fn run<T>(story: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            tokio::time::timeout(PATIENCE * 6, story)
                .await
                .context("the story did not end")?
        })
}
