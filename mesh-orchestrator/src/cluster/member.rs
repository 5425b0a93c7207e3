//! A node's membership: its registration and its object. Imports `commands` and the store's membership.

use std::{sync::Arc, time::Duration};

use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{ChangeError, Cluster, Registration, stored};
use crate::{
    commands,
    objects::{Node, NodeId},
    store::{Heartbeat, InvalidKey, membership::NodeSession},
};

/// The pause before the store is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a leaving node waits for the store.
const LEAVE: Duration = Duration::from_secs(2);

/// This node, registered with the cluster until it is dropped.
///
/// If the node's object is lost (a backup is restored, a user removes it), it is stored again.
#[derive(Debug)]
pub struct Member {
    cluster: Cluster,
    node: NodeId,
    session: NodeSession,
    registration: watch::Sender<Registration>,
    description: watch::Sender<Node>,
    describing: JoinHandle<()>,
}

impl Member {
    /// Registers a node. Labels and availability apply only to a new node; the leader determines the status.
    ///
    /// # Errors
    /// When the node's identifier has characters that a key may not have.
    pub fn start(
        cluster: &Cluster,
        description: Node,
        registration: Registration,
        heartbeat: Heartbeat,
    ) -> Result<Self, InvalidKey> {
        let node = description.id.clone();
        let key = stored::registration(&node)?;
        stored::node(&node)?;
        let session = NodeSession::start(Arc::clone(cluster.store()), key, encode(&registration), heartbeat);
        let (description, descriptions) = watch::channel(description);
        Ok(Self {
            session,
            node,
            registration: watch::Sender::new(registration),
            description,
            describing: tokio::spawn(describe(cluster.clone(), descriptions)),
            cluster: cluster.clone(),
        })
    }

    /// The node's identifier.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Changes the node's registration.
    pub fn update_registration(&self, change: impl FnOnce(&mut Registration)) {
        self.registration.send_modify(change);
        self.session.set(encode(&self.registration.current()));
    }

    /// Describes the node again, as its engine has new labels or resources.
    pub fn describe(&self, description: Node) {
        self.description.send_if_modified(|known| {
            let has_changed = *known != description && known.id == description.id;
            if has_changed {
                *known = description;
            }
            has_changed
        });
    }

    /// Whether the node is registered, as far as it knows.
    #[must_use]
    pub fn present(&self) -> watch::Receiver<bool> {
        self.session.present()
    }

    /// Announces that the agent stops and will be back, perhaps as another program. The sooner the better: an
    /// agent that has no time left for [`leave`](Self::leave) is waited for all the same.
    pub fn announce_leaving(&self, replaced: bool) {
        self.update_registration(|registration| {
            registration.leaving = true;
            registration.replaced = replaced;
        });
    }

    /// Withdraws the registration of an agent that stops and has announced it.
    pub async fn leave(self) {
        let mut changes = self.cluster.changes();
        let known = changes.wait_for(|_| {
            self.cluster
                .registration(&self.node)
                .is_some_and(|known| known.leaving)
        });
        // If the store is unavailable, no one can learn it.
        let _ = timeout(LEAVE, known).await;
        self.describing.abort();
        let _ = timeout(LEAVE, self.session.withdraw()).await;
    }
}

fn encode(registration: &Registration) -> Vec<u8> {
    // Text and numbers only: this cannot fail.
    serde_json::to_vec(registration).unwrap_or_default()
}

/// Keeps the node's object up to date with the agent's description.
async fn describe(cluster: Cluster, mut descriptions: watch::Receiver<Node>) {
    let mut changes = cluster.changes();
    loop {
        let description = descriptions.newest();
        changes.mark_unchanged();
        let is_due = cluster.read(|state| {
            let now = cluster.clock().now();
            !commands::describe_node(state, &description, now).is_empty()
        });
        if is_due {
            let author = cluster.author("agent", "describe the node");
            let described = cluster
                .change(author, |state, now| {
                    Ok(commands::describe_node(state, &description, now))
                })
                .await;
            if let Err(error) = described {
                if !error.is_unavailable() && !matches!(error, ChangeError::Restoring) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, node = %description.id, "could not describe the node");
                }
                sleep(RETRY).await;
                continue;
            }
        }
        let stopped = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            changed = descriptions.changed() => changed.is_err(),
        };
        if stopped {
            return;
        }
    }
}
