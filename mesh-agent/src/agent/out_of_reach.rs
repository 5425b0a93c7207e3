//! Which of this node's replicas take no new connections: those that fail their check, and those that the
//! mesh cannot reach here. Managers repeat it to all nodes.

use mesh_support::watched::Newest as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{discovery::ContainerState, model::FailedChecks};

/// Puts both together until cancelled.
pub(super) async fn combine(
    mut checked: watch::Receiver<FailedChecks>,
    mut containers: watch::Receiver<ContainerState>,
    failed: watch::Sender<FailedChecks>,
    shutdown: CancellationToken,
) {
    loop {
        let new = both(checked.newest(), &containers.newest());
        failed.send_if_modified(|failed| {
            let changed = *failed != new;
            *failed = new;
            changed
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = checked.changed() => {}
            Ok(()) = containers.changed() => {}
            else => return,
        }
    }
}

fn both(mut failed: FailedChecks, containers: &ContainerState) -> FailedChecks {
    for task in &containers.out_of_reach {
        // Of those past the limit, the other nodes learn when they send to them.
        failed.insert_out_of_reach(task.clone());
    }
    failed
}
