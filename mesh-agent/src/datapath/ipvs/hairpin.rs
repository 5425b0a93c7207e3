//! Hairpin mode for the bridge ports of this node's replicas, so that a replica that connects to a port
//! published by its own node can be balanced to itself. Imports the data path's netlink and its record file
//! only.
//!
//! `br_netfilter` restores a reply's addresses while the reply is still on the bridge, and then bridges it to
//! the container that connected. If that is the container that replied, the frame leaves by the port it came
//! from: a bridge drops such frames unless the port is in hairpin mode.
//!
//! A file records which ports the mesh has set. A port that was in hairpin mode already (an engine without
//! its userland proxy sets it) is not the mesh's, and stays as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use netlink_packet_route::link::{InfoBridgePort, LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::{
    link,
    record_file::{RecordError, RecordFile},
};
use crate::datapath::netlink::{Connection, NetlinkError};

/// Names of the ports that the mesh has set, by interface index. The index alone does not suffice: by now it
/// may be another interface's.
type Ours = BTreeMap<u32, String>;

/// The ports that the kernel has, by interface index; without interfaces that are gone or are not bridge
/// ports.
type Found = BTreeMap<u32, Port>;

/// A bridge's port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    hairpin: bool,
}

/// The bridge ports of one network namespace: that of the thread that opened it.
pub(super) struct Hairpin {
    connection: Connection,
    record: RecordFile,
    ours: Ours,
}

/// Ports could not be put into hairpin mode, or back out of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HairpinError {
    #[error("cannot open rtnetlink to set bridge ports; the agent needs CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    #[error("cannot look up the container interface with index {0}")]
    LookUp(u32, #[source] NetlinkError),
    #[error("cannot turn {} hairpin mode of the bridge port {name}", if *.on { "on" } else { "off" })]
    Set {
        name: String,
        on: bool,
        source: NetlinkError,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Hairpin {
    /// Opens rtnetlink and reads an earlier agent's record; changes nothing.
    pub(super) fn open(record: &Path) -> Result<Self, HairpinError> {
        let record = RecordFile::new(record);
        Ok(Self {
            connection: Connection::open(NETLINK_ROUTE).map_err(HairpinError::Open)?,
            ours: record.read()?,
            record,
        })
    }

    /// Puts those of these interfaces that are bridge ports into hairpin mode, and takes all others that the
    /// mesh set out of it. If it fails for a port, the others are set all the same; it may be called again.
    pub(super) fn apply(&mut self, wanted: &BTreeSet<u32>) -> Result<(), HairpinError> {
        let found = self.look(wanted)?;
        let steps = steps(wanted, &self.ours, &found);
        self.remember(steps.ours)?;
        let mut outcome = Ok(());
        for (index, name) in steps.on {
            outcome = outcome.and(self.set(index, name, true));
        }
        let mut ours = self.ours.clone();
        for (index, name) in steps.off {
            match self.set(index, name, false) {
                Ok(()) => drop(ours.remove(&index)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        self.remember(ours)?;
        outcome
    }

    /// Looks up all ports that are wanted or that the mesh has set.
    fn look(&mut self, wanted: &BTreeSet<u32>) -> Result<Found, HairpinError> {
        let mut found = Found::new();
        for &index in wanted.iter().chain(self.ours.keys()) {
            let mut request = LinkMessage::default();
            request.header.index = index;
            let link = link::look_up(&mut self.connection, request)
                .map_err(|error| HairpinError::LookUp(index, error))?;
            if let Some(port) = link.as_ref().and_then(Port::of) {
                found.insert(index, port);
            }
        }
        Ok(found)
    }

    fn set(&mut self, index: u32, name: String, on: bool) -> Result<(), HairpinError> {
        let settings = vec![InfoBridgePort::HairpinMode(on)];
        match link::set_bridge_port(&mut self.connection, index, settings) {
            // It is gone by now, or no longer a bridge port.
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => Ok(()),
            result => result.map_err(|source| HairpinError::Set { name, on, source }),
        }
    }

    fn remember(&mut self, ours: Ours) -> Result<(), HairpinError> {
        if ours == self.ours {
            return Ok(());
        }
        if ours.is_empty() {
            self.record.remove()?;
        } else {
            self.record.write(&ours)?;
        }
        self.ours = ours;
        Ok(())
    }
}

impl Port {
    fn of(link: &LinkMessage) -> Option<Self> {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
        let hairpin = link::bridge_port(link)?.contains(&InfoBridgePort::HairpinMode(true));
        Some(Self { name, hairpin })
    }
}

/// Changes to make.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    /// What the mesh owns once the changes begin.
    ours: Ours,
    /// Ports to put into hairpin mode, all of them in `ours`.
    on: Ours,
    /// Ports to take out of hairpin mode, all of them in `ours` until that is done.
    off: Ours,
}

/// The changes from what is found to what is wanted.
fn steps(wanted: &BTreeSet<u32>, ours: &Ours, found: &Found) -> Steps {
    let mut steps = Steps::default();
    for (&index, port) in found {
        let is_ours = ours.get(&index) == Some(&port.name);
        let change = match (wanted.contains(&index), port.hairpin) {
            (true, false) => Some(&mut steps.on),
            (false, true) if is_ours => Some(&mut steps.off),
            (true, true) if is_ours => None,
            // It was never ours, or something else has reset it already.
            (true | false, true) | (false, false) => continue,
        };
        steps.ours.insert(index, port.name.clone());
        if let Some(change) = change {
            change.insert(index, port.name.clone());
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(names: &[(u32, &str)]) -> Ours {
        names
            .iter()
            .map(|(index, name)| (*index, (*name).to_owned()))
            .collect()
    }

    fn found(ports: &[(u32, &str, bool)]) -> Found {
        ports
            .iter()
            .map(|&(index, name, hairpin)| {
                let name = name.to_owned();
                (index, Port { name, hairpin })
            })
            .collect()
    }

    #[test]
    fn a_replicas_port_is_set_and_remembered() {
        let steps = steps(&[7].into(), &Ours::new(), &found(&[(7, "veth7", false)]));
        assert_eq!(steps.on, ports(&[(7, "veth7")]));
        assert_eq!(steps.ours, ports(&[(7, "veth7")]));
        assert!(steps.off.is_empty());
    }

    #[test]
    fn a_port_that_is_in_hairpin_mode_already_is_not_ours() {
        let found = found(&[(7, "veth7", true)]);
        assert_eq!(steps(&[7].into(), &Ours::new(), &found), Steps::default());
        assert_eq!(steps(&[].into(), &Ours::new(), &found), Steps::default());
    }

    #[test]
    fn what_is_set_stays_ours_while_wanted_and_is_reset_afterwards() {
        let (ours, found) = (ports(&[(7, "veth7")]), found(&[(7, "veth7", true)]));
        let kept = steps(&[7].into(), &ours, &found);
        assert_eq!(
            kept,
            Steps {
                ours: ours.clone(),
                ..Steps::default()
            }
        );
        let gone = steps(&[].into(), &ours, &found);
        assert_eq!((gone.ours, gone.off), (ours.clone(), ours));
        assert!(gone.on.is_empty());
    }

    #[test]
    fn what_others_have_reset_is_set_again_or_forgotten() {
        let (ours, found) = (ports(&[(7, "veth7")]), found(&[(7, "veth7", false)]));
        assert_eq!(steps(&[7].into(), &ours, &found).on, ours);
        assert_eq!(steps(&[].into(), &ours, &found), Steps::default());
    }

    #[test]
    fn an_interface_that_is_gone_is_forgotten_even_if_another_has_its_index() {
        let ours = ports(&[(7, "veth7")]);
        assert_eq!(steps(&[7].into(), &ours, &Found::new()), Steps::default());
        let another = found(&[(7, "veth9", true)]);
        assert_eq!(steps(&[].into(), &ours, &another), Steps::default());
        assert_eq!(steps(&[7].into(), &ours, &another), Steps::default());
    }
}
