//! A node's place in the cluster: what it is, and that it is there. Imports `commands` and the store's
//! membership.

use std::{sync::Arc, time::Duration};

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

/// The pause before the store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a node that goes waits until the others know.
const FAREWELL: Duration = Duration::from_secs(2);

/// This node, registered with the cluster until it is dropped.
///
/// Whatever happens to the node's object (a backup is restored, a user removes it) it is put again.
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
    /// Registers a node. Of its labels and its availability only a new node's count; its status is found by
    /// the leader.
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

    /// Changes what others read of the node as long as it is there.
    pub fn say(&self, change: impl FnOnce(&mut Registration)) {
        self.registration.send_modify(change);
        self.session.set(encode(&self.registration.borrow()));
    }

    /// Describes the node anew: its engine has other labels, or other resources.
    pub fn describe(&self, description: Node) {
        self.description.send_if_modified(|known| {
            let has_changed = *known != description && known.id == description.id;
            if has_changed {
                *known = description;
            }
            has_changed
        });
    }

    /// Whether the node is registered, as far as is known; follow it to tell people when it is cut off.
    #[must_use]
    pub fn present(&self) -> watch::Receiver<bool> {
        self.session.present()
    }

    /// Takes the node's registration back, because its agent ends and will be back: the cluster waits for it as
    /// long as for one that is silent.
    pub async fn leave(self) {
        self.say(|registration| registration.leaving = true);
        let mut changes = self.cluster.changes();
        let known = changes.wait_for(|_| {
            self.cluster
                .registration(&self.node)
                .is_some_and(|known| known.leaving)
        });
        // If the store is away, nobody can be told.
        let _ = timeout(FAREWELL, known).await;
        self.describing.abort();
        let _ = timeout(FAREWELL, self.session.withdraw()).await;
    }
}

fn encode(registration: &Registration) -> Vec<u8> {
    // It is made of text and numbers: it can be written.
    serde_json::to_vec(registration).unwrap_or_default()
}

/// Keeps the node's object as the agent describes it.
async fn describe(cluster: Cluster, mut descriptions: watch::Receiver<Node>) {
    let mut changes = cluster.changes();
    loop {
        let description = descriptions.borrow_and_update().clone();
        changes.borrow_and_update();
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
