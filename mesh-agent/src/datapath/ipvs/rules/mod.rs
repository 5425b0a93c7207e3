//! The mesh's own nftables tables, which IPVS needs: they keep its packets from Docker's rules, let local
//! processes reach services at 127.0.0.0/8, and guard the tunnel between nodes. Imports the model and the
//! data path's netlink only.

mod build;
mod chains;
mod difference;
mod expression;
mod phrase;
mod ruleset;
mod target;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

pub use self::{chains::TUNNEL_MARK, target::Target};
use self::{
    difference::{Operation, difference},
    ruleset::{Family, Ruleset},
    target::names,
};
use crate::{
    datapath::netlink::{Connection, Message, NetlinkError},
    model::{BackendKey, Protocol, ServiceKey, Subnet},
};

const FAMILIES: [Family; 2] = [Family::Ip, Family::Bridge];

/// What the rules are derived from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// This node's address as its peers know it. Without one nothing uses the tunnel.
    pub node_address: Option<Ipv4Addr>,
    /// The bridge that containers and the tunnel are ports of.
    pub bridge: String,
    /// UDP port of the tunnel, host byte order.
    pub tunnel_port: u16,
    /// The interfaces that traffic from outside arrives on.
    pub uplinks: BTreeSet<String>,
    /// MTU of the uplink, bytes.
    pub uplink_mtu: u32,
    /// What IPVS answers: address, protocol and port (host byte order).
    pub frontends: BTreeSet<(Ipv4Addr, Protocol, u16)>,
    /// Where local processes' connections to a service at 127.0.0.0/8 go. If no replica of a listed service
    /// has a weight above 0, new connections to it are refused, there and at its frontends.
    pub localhost: BTreeMap<ServiceKey, Vec<Target>>,
    /// Addresses of this node's own replicas on the bridge.
    pub local_replicas: BTreeSet<Ipv4Addr>,
    /// Networks that some of those answer by themselves, and the source that all of them see instead of
    /// clients of these.
    pub masquerades: BTreeMap<Subnet, Ipv4Addr>,
    /// The other nodes.
    pub peers: BTreeSet<Ipv4Addr>,
}

/// What an earlier agent left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What IPVS answered for that agent: address, protocol and port (host byte order).
    pub frontends: BTreeSet<(Ipv4Addr, Protocol, u16)>,
}

/// The rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// No netlink socket.
    #[error("cannot open nftables; load the kernel module nf_tables, and give the agent CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    /// The kernel refused to list something.
    #[error("cannot read {0} of the nftables table `mesh`")]
    Read(&'static str, #[source] NetlinkError),
    /// The kernel refused a transaction; none of it took effect.
    #[error(
        "cannot write the nftables table `mesh` ({step}): does the kernel have the modules nft_chain_nat, \
         nft_numgen and nft_reject, and nf_tables for bridges?"
    )]
    Write {
        /// The step that was refused.
        step: String,
        /// The kernel's error.
        source: NetlinkError,
    },
}

/// The tables of one network namespace.
pub struct Table {
    connection: Connection,
    /// What this agent last wrote; `None` until then, and after a failure.
    known: Option<Known>,
}

struct Known {
    rulesets: [Ruleset; 2],
    /// The kernel's handles of the tables. If they have changed, something else has removed ours.
    handles: [Option<u64>; 2],
}

impl Table {
    /// Opens nftables in the calling thread's network namespace. Changes nothing before the first
    /// [`Self::apply`].
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, RulesError> {
        let connection = Connection::open(NETLINK_NETFILTER).map_err(RulesError::Open)?;
        Ok(Self {
            connection,
            known: None,
        })
    }

    /// Reads the table in the kernel; `None` if there is none.
    ///
    /// # Errors
    /// When the kernel refuses to list it.
    pub fn read(&mut self) -> Result<Option<Found>, RulesError> {
        if self.handle(Family::Ip)?.is_none() {
            return Ok(None);
        }
        let messages = self.list(wire::get_elements(Family::Ip, names::FRONTENDS), "the frontends")?;
        let frontends = messages
            .iter()
            .flat_map(wire::keys)
            .filter_map(|key| build::frontend(&key))
            .collect();
        Ok(Some(Found { frontends }))
    }

    /// Brings the kernel to the rules, in one transaction of what differs; sends nothing if nothing does. A
    /// table that an earlier agent left is replaced as a whole, but keeps the values of its counters.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing has changed, and it may be called again.
    pub fn apply(&mut self, rules: &Rules) -> Result<(), RulesError> {
        let wanted = [build::ip(rules), build::bridge(rules)];
        let handles = self.handles()?;
        if let Some(known) = self.known.take_if(|known| known.handles == handles) {
            let steps: Vec<Operation<'_>> = std::iter::zip(&known.rulesets, &wanted)
                .flat_map(|(old, new)| difference(Some(old), new))
                .collect();
            match self.write(&steps, &BTreeMap::new()) {
                Ok(()) => {
                    self.known = Some(Known {
                        rulesets: wanted,
                        handles,
                    });
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(error = %error, "the nftables table was changed by another program, replacing it");
                }
            }
        }
        self.known = None;
        let counters = self.counted()?;
        let mut steps = Vec::new();
        for (family, handle) in FAMILIES.into_iter().zip(handles) {
            if handle.is_some() {
                steps.push(Operation::DeleteTable(family));
            }
        }
        steps.extend(wanted.iter().flat_map(|new| difference(None, new)));
        self.write(&steps, &counters)?;
        let handles = self.handles()?;
        self.known = Some(Known {
            rulesets: wanted,
            handles,
        });
        Ok(())
    }

    /// Local processes' connections to 127.0.0.0/8 that each replica in the rules (with weight 0 too) has
    /// received.
    ///
    /// # Errors
    /// When the kernel refuses to list the counters.
    pub fn counters(&mut self) -> Result<BTreeMap<BackendKey, u64>, RulesError> {
        let counted = self.counted()?;
        Ok(counted
            .into_iter()
            .filter_map(|(name, count)| Some((target::backend_of(&name)?, count)))
            .collect())
    }

    /// Removes the tables with everything in them, if there are any.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self) -> Result<(), RulesError> {
        self.known = None;
        let handles = self.handles()?;
        let steps: Vec<Operation<'_>> = FAMILIES
            .into_iter()
            .zip(handles)
            .filter_map(|(family, handle)| handle.map(|_| Operation::DeleteTable(family)))
            .collect();
        self.write(&steps, &BTreeMap::new())
    }

    fn write(&mut self, steps: &[Operation<'_>], counters: &BTreeMap<String, u64>) -> Result<(), RulesError> {
        if steps.is_empty() {
            return Ok(());
        }
        let messages = wire::transaction(steps, |name| counters.get(name).copied().unwrap_or_default());
        self.connection.transaction(&messages).map_err(|source| {
            let culprit = if let NetlinkError::TransactionRefused { index, .. } = &source {
                wire::culprit(steps, *index)
            } else {
                None
            };
            let step = culprit.map_or_else(|| format!("{} steps", steps.len()), ToString::to_string);
            RulesError::Write { step, source }
        })
    }

    fn handles(&mut self) -> Result<[Option<u64>; 2], RulesError> {
        let [ip, bridge] = FAMILIES;
        Ok([self.handle(ip)?, self.handle(bridge)?])
    }

    fn handle(&mut self, family: Family) -> Result<Option<u64>, RulesError> {
        match self.connection.get(&wire::get_table(family)) {
            Ok(answer) => Ok(answer.as_ref().and_then(wire::table_handle)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(RulesError::Read("the handle", error)),
        }
    }

    fn counted(&mut self) -> Result<BTreeMap<String, u64>, RulesError> {
        let messages = self.list(wire::get_counters(Family::Ip), "the counters")?;
        Ok(messages.iter().filter_map(wire::counter).collect())
    }

    fn list(&mut self, request: Message, what: &'static str) -> Result<Vec<Message>, RulesError> {
        match self.connection.dump(&request) {
            Err(error) if absent(&error) => Ok(Vec::new()),
            result => result.map_err(|error| RulesError::Read(what, error)),
        }
    }
}

/// Whether the error means that there is no table, or no support for its family.
fn absent(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
    )
}
