//! The host's own firewall: follows the rules of the chain DOCKER-USER, as iptables-nft and iptables-legacy
//! have them, and translates them to the mesh's source rules. Imports the model, and the data path's netlink.
//!
//! No program of iptables is run: the agent's image has none, and would need the host's of the same kind.
//! Both tables are read from the kernel with the capability that the agent has anyway (CAP_NET_ADMIN).

mod extensions;
pub mod ipv6;
mod legacy;
mod nf_tables;
mod packet;
mod ruleset;
#[cfg(test)]
mod tests;
mod translate;

use std::{sync::Arc, time::Duration};

use mesh_support::{error_chain, watched::Newest as _};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    ruleset::Chains,
    translate::{Network, translate},
};
use super::NetworkState;
use crate::{
    datapath::netlink::Connection,
    model::{PortPolicies, PortPolicy},
};

/// iptables-legacy announces no changes.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// A change of nf_tables is many messages, which are read together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// `NFNLGRP_NFTABLES`: changes of nf_tables.
const CHANGES: u32 = 7;
const DATAGRAM_BYTES: usize = 1 << 16;

/// Follows the host's firewall in the network namespace in which it was made.
pub struct HostFirewallWatcher {
    /// `None` where the kernel has no nf_tables.
    netfilter: Option<Connection>,
    changes: Option<TokioSocket>,
    network: watch::Receiver<Option<NetworkState>>,
    policies: watch::Sender<Option<Arc<PortPolicies>>>,
    known: Option<(Vec<Chains>, Network)>,
    trouble: Option<String>,
}

/// Opens netlink in the calling thread's network namespace. The receiver holds `None` until the rules have
/// been read once.
#[must_use]
pub fn watch_host_firewall(
    network: watch::Receiver<Option<NetworkState>>,
) -> (HostFirewallWatcher, watch::Receiver<Option<Arc<PortPolicies>>>) {
    let (policies, receiver) = watch::channel(None);
    let netfilter = Connection::open(NETLINK_NETFILTER)
        .inspect_err(|error| debug!(error = error_chain(error), "the kernel has no nf_tables"))
        .ok();
    let changes = changes()
        .inspect_err(|error| debug!(%error, "changes of nf_tables are not announced"))
        .ok();
    let watcher = HostFirewallWatcher {
        netfilter,
        changes,
        network,
        policies,
        known: None,
        trouble: None,
    };
    (watcher, receiver)
}

/// A socket on which the kernel announces changes of nf_tables.
fn changes() -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(CHANGES)?;
    Ok(socket)
}

impl HostFirewallWatcher {
    /// Follows the rules until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.look().await;
            let network = self.network.changed();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = network => if changed.is_err() {
                    return;
                },
                () = changed(self.changes.as_mut()) => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Reads the rules, and publishes what they mean if that has changed.
    async fn look(&mut self) {
        let Some(network) = self.network.newest() else {
            return;
        };
        let network = Network {
            uplinks: network
                .uplinks
                .iter()
                .map(|(name, uplink)| (uplink.index, name.clone()))
                .collect(),
            bridges: network.bridges,
        };
        let tables = match self.read() {
            Ok(tables) => tables,
            Err(trouble) => {
                self.note(Some(trouble));
                return;
            }
        };
        self.note(None);
        let now = (tables, network);
        if self.known.as_ref() == Some(&now) {
            return;
        }
        self.known = Some(now.clone());
        // Thousands of rules take a while.
        let policies = tokio::task::spawn_blocking(move || translate(&now.0, &now.1)).await;
        if let Ok(policies) = policies {
            self.publish(policies);
        }
    }

    fn read(&mut self) -> Result<Vec<Chains>, String> {
        let mut tables = Vec::new();
        if let Some(netfilter) = &mut self.netfilter {
            tables.push(nf_tables::read(netfilter).map_err(|error| {
                format!(
                    "the rules of iptables-nft cannot be read: {}",
                    error_chain(&error)
                )
            })?);
        }
        tables.push(legacy::read().map_err(|error| {
            format!(
                "the rules of iptables-legacy cannot be read: {}",
                error_chain(&error)
            )
        })?);
        Ok(tables)
    }

    /// Notes that the rules cannot be read: those known go on, and if none are, no port is the mesh's, since
    /// any may be closed.
    fn note(&mut self, trouble: Option<String>) {
        if let Some(trouble) = &trouble {
            if self.trouble.as_ref() != Some(trouble) {
                warn!("{trouble}; trying again");
            }
            if self.known.is_none() {
                let reason = format!("{trouble} (`--host-firewall ignore` does without)");
                self.publish(PortPolicies::all(&PortPolicy::Inexpressible(reason.into())));
            }
        } else if self.trouble.is_some() {
            info!("the rules of the host's firewall can be read again");
        }
        self.trouble = trouble;
    }

    fn publish(&self, policies: PortPolicies) {
        self.policies.send_if_modified(|published| {
            let is_new = published.as_deref() != Some(&policies);
            if is_new {
                *published = Some(Arc::new(policies));
            }
            is_new
        });
    }
}

/// Waits for a change of nf_tables, and for what belongs to it.
async fn changed(socket: Option<&mut TokioSocket>) {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let received = announced(socket).await;
    settled(socket, received).await;
}

/// Waits for a change of nf_tables; false if messages were lost, which is a change as well. Cancel safe.
async fn announced(socket: &mut TokioSocket) -> bool {
    let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
    socket.recv(&mut datagram).await.is_ok()
}

/// Waits for the other messages of a change.
async fn settled(socket: &mut TokioSocket, mut received: bool) {
    let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
    while received {
        datagram.clear();
        let next = timeout(DEBOUNCE, socket.recv(&mut datagram)).await;
        received = next.is_ok_and(|outcome| outcome.is_ok());
    }
    if !received {
        sleep(DEBOUNCE).await;
    }
}
