//! The state of the orchestrator, as the asked node sees it.

use axum::response::Response;
use mesh_support::watched::Watched as _;

use super::{call::Call, error::ApiError, respond::ok, types::OrchestratorView};
use crate::objects::Task;

pub(super) async fn inspect(call: Call) -> Result<Response, ApiError> {
    let cluster = call.api.cluster();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let leader = cluster.leader().map(|leader| leader.to_string());
    let revision = cluster.revision();
    let (nodes, services, tasks) = cluster.read(|state| {
        (
            state.nodes().len(),
            state.services().len(),
            state
                .tasks()
                .values()
                .filter(|task| Task::is_running(task))
                .count(),
        )
    });
    ok(&OrchestratorView {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        node: call.api.node().to_string(),
        leader,
        store: cluster.store().describe(),
        available: cluster.available().current(),
        revision,
        nodes: count(nodes),
        services: count(services),
        tasks: count(tasks),
    })
}
