//! The host's rules for IPv6: whether there are any that restrict what comes in, which the mesh, whose
//! packets do not pass them, would open.

mod legacy;
mod nf_tables;
mod restriction;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use mesh_support::error_chain;
use netlink_sys::{TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{POLL_INTERVAL, changed, changes};
use crate::{datapath::netlink::Connection, model::Ipv6Rules};

/// Follows the rules in the network namespace in which it was made.
pub struct Ipv6RulesWatcher {
    changes: Option<TokioSocket>,
    rules: watch::Sender<Option<Ipv6Rules>>,
    /// Whether they have been read.
    known: bool,
    trouble: Option<String>,
}

/// Opens netlink in the calling thread's network namespace. The receiver holds `None` until the rules have
/// been read once.
#[must_use]
pub fn watch_ipv6_rules() -> (Ipv6RulesWatcher, watch::Receiver<Option<Ipv6Rules>>) {
    let (rules, receiver) = watch::channel(None);
    let watcher = Ipv6RulesWatcher {
        changes: changes().ok(),
        rules,
        known: false,
        trouble: None,
    };
    (watcher, receiver)
}

impl Ipv6RulesWatcher {
    /// Follows the rules until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.look();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed(self.changes.as_mut()) => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Reads the rules. If that fails, those known go on, and if none are, there may be any.
    fn look(&mut self) {
        let (rules, trouble) = match ipv6_rules() {
            Ok(rules) => {
                self.known = true;
                (Some(rules), None)
            }
            Err(trouble) => {
                let restricted = Ipv6Rules::Restricted(trouble.as_str().into());
                ((!self.known).then_some(restricted), Some(trouble))
            }
        };
        if let Some(trouble) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            warn!("{trouble}; trying again");
        } else if trouble.is_none() && self.trouble.is_some() {
            info!("the host's rules for IPv6 can be read again");
        }
        self.trouble = trouble;
        if let Some(rules) = rules {
            self.rules.send_if_modified(|published| {
                let is_new = published.as_ref() != Some(&rules);
                *published = Some(rules);
                is_new
            });
        }
    }
}

/// What the rules of the calling thread's network namespace do now.
///
/// # Errors
/// When they cannot be read; a sentence says why.
pub fn ipv6_rules() -> Result<Ipv6Rules, String> {
    let mut tables = Vec::new();
    // A kernel without nf_tables has no rules there.
    if let Ok(mut netfilter) = Connection::open(NETLINK_NETFILTER) {
        tables.extend(nf_tables::read(&mut netfilter).map_err(|error| {
            format!(
                "the rules of nftables for IPv6 cannot be read: {}",
                error_chain(&error)
            )
        })?);
    }
    tables.extend(legacy::read().map_err(|error| {
        format!(
            "the rules of ip6tables-legacy cannot be read: {}",
            error_chain(&error)
        )
    })?);
    Ok(match restriction::restriction(&tables) {
        None => Ipv6Rules::Open,
        Some(chain) => Ipv6Rules::Restricted(Arc::from(chain)),
    })
}
