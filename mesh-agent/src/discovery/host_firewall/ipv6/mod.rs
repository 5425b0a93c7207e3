//! The host's rules for IPv6: whether there are any that restrict what comes in, which the mesh, whose
//! packets do not pass them, would open.

mod legacy;
mod nf_tables;
mod restriction;
#[cfg(test)]
mod tests;

use mesh_support::error_chain;
use netlink_sys::{TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::restriction::restriction;
use super::{POLL_INTERVAL, announced, changes, settled};
use crate::{datapath::netlink::Connection, model::Ipv6Rules};

/// Follows the rules in the network namespace in which it was made.
pub struct Ipv6RulesWatcher {
    changes: Option<TokioSocket>,
    rules: watch::Sender<Option<Ipv6Rules>>,
    /// What restricts in nf_tables, whose changes are announced; `None` until that has been read.
    in_nf_tables: Option<Restriction>,
    /// Whether all rules have been read.
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
        in_nf_tables: None,
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
                received = first(self.changes.as_mut()) => {
                    self.in_nf_tables = None;
                    if let Some(socket) = &mut self.changes {
                        settled(socket, received).await;
                    }
                }
                // ip6tables-legacy announces no changes. Those of nf_tables are only listed when they change:
                // thousands of rules take a while.
                () = sleep(POLL_INTERVAL) => if self.changes.is_none() {
                    self.in_nf_tables = None;
                },
            }
        }
    }

    fn read(&mut self) -> Result<Ipv6Rules, String> {
        let in_nf_tables = match &self.in_nf_tables {
            Some(known) => known.clone(),
            None => self.in_nf_tables.insert(in_nf_tables()?).clone(),
        };
        Ok(together(in_nf_tables, in_legacy()?))
    }

    /// Reads the rules. If that fails, those known go on, and if none are, there may be any.
    fn look(&mut self) {
        let (rules, trouble) = match self.read() {
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

/// The first message of a change of nf_tables; never where none are announced.
async fn first(socket: Option<&mut TokioSocket>) -> bool {
    match socket {
        Some(socket) => announced(socket).await,
        None => std::future::pending().await,
    }
}

/// What the rules of the calling thread's network namespace do now.
///
/// # Errors
/// When they cannot be read; a sentence says why.
pub fn ipv6_rules() -> Result<Ipv6Rules, String> {
    Ok(together(in_nf_tables()?, in_legacy()?))
}

/// The chain that restricts what comes in, if any does.
type Restriction = Option<String>;

fn together(in_nf_tables: Restriction, in_legacy: Restriction) -> Ipv6Rules {
    match in_nf_tables.or(in_legacy) {
        None => Ipv6Rules::Open,
        Some(chain) => Ipv6Rules::Restricted(chain.into()),
    }
}

fn in_nf_tables() -> Result<Restriction, String> {
    // A kernel without nf_tables has no rules there.
    let Ok(mut netfilter) = Connection::open(NETLINK_NETFILTER) else {
        return Ok(None);
    };
    let tables = nf_tables::read(&mut netfilter).map_err(|error| {
        format!(
            "the rules of nftables for IPv6 cannot be read: {}",
            error_chain(&error)
        )
    })?;
    Ok(restriction(&tables))
}

fn in_legacy() -> Result<Restriction, String> {
    let table = legacy::read().map_err(|error| {
        format!(
            "the rules of ip6tables-legacy cannot be read: {}",
            error_chain(&error)
        )
    })?;
    Ok(restriction(table.as_slice()))
}
