//! The key of packets between nodes, derived from the secret that the cluster's vault holds.

use std::time::Duration;

use mesh_orchestrator::{cluster::Clock, secrets::VaultError};
use mesh_support::error_chain;
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use super::{open::Reach, source::CLUSTER_ID};
use crate::{model::TunnelKey, source::SourceState};

/// Between two looks for another secret; as often as a Swarm's managers look for another token.
const INTERVAL: Duration = Duration::from_secs(10);

/// Keeps the key in the source's state, for ever. A manager makes the secret if there is none.
pub(super) async fn follow(
    reach: &Reach,
    clock: &dyn Clock,
    is_manager: bool,
    state: &watch::Sender<SourceState>,
) {
    let mut warned = false;
    loop {
        match key(reach, clock, is_manager).await {
            Ok(key) => {
                state.send_if_modified(|state| state.take_key(key));
                warned = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    warn!(
                        error = error_chain(&error),
                        "cannot read the secret of the tunnel's key; the last key stays in use"
                    );
                }
            }
        }
        sleep(INTERVAL).await;
    }
}

async fn key(reach: &Reach, clock: &dyn Clock, is_manager: bool) -> Result<Option<TunnelKey>, VaultError> {
    let secret = match reach {
        Reach::Store(vault) if is_manager => vault.ensure_tunnel_secret(clock.now()).await?,
        reach => reach.secrets().tunnel_secret().await?,
    };
    Ok(secret.map(|secret| TunnelKey::derive(secret.expose(), CLUSTER_ID)))
}
