//! Hairpin mode for the bridge ports of this node's replicas, so that a replica that dials its own node's port
//! can be answered by itself. Imports the data path's netlink and its memory file only.
//!
//! `br_netfilter` puts a reply's addresses back while the reply is still on the bridge, and then bridges it to the
//! container that dialled. If that is the container that answered, the frame would leave by the port it came
//! from: a bridge drops such frames but at ports in hairpin mode.
//!
//! What the mesh has set is remembered in a file. A port that was in hairpin mode already (an engine without its
//! userland proxy sees to that) is not the mesh's, and stays so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use netlink_packet_route::link::{InfoBridgePort, LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::{
    link,
    memory_file::{MemoryError, MemoryFile},
};
use crate::datapath::netlink::{Connection, NetlinkError};

/// Names of the ports that the mesh has set, by interface index: an index alone may be another interface's by
/// now.
type Ours = BTreeMap<u32, String>;

/// What the kernel says of the ports that matter, by interface index; interfaces that have gone, or that are no
/// bridge's ports, are not among them.
type Found = BTreeMap<u32, Port>;

/// A bridge's port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    hairpin: bool,
}

/// The bridge ports of one network namespace: of the thread that opened it.
pub(super) struct Hairpin {
    connection: Connection,
    memory: MemoryFile,
    ours: Ours,
}

/// Ports could not be put into hairpin mode, or back out of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HairpinError {
    #[error("cannot reach rtnetlink to set bridge ports; the agent needs CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    #[error("cannot look up interface {0}, a container's")]
    LookUp(u32, #[source] NetlinkError),
    #[error("cannot turn the hairpin mode of bridge port {name} {}", if *.on { "on" } else { "off" })]
    Set {
        name: String,
        on: bool,
        source: NetlinkError,
    },
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl Hairpin {
    /// Opens rtnetlink and reads what an earlier agent remembered; nothing is changed yet.
    pub(super) fn open(memory: &Path) -> Result<Self, HairpinError> {
        let memory = MemoryFile::new(memory);
        Ok(Self {
            connection: Connection::open(NETLINK_ROUTE).map_err(HairpinError::Open)?,
            ours: memory.read()?,
            memory,
        })
    }

    /// Puts these interfaces into hairpin mode, those that are bridge ports, and all others back that the mesh
    /// has set. After a failure the other ports are right all the same, and calling it again mends the rest.
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

    /// Looks at all ports that are wanted, or the mesh's.
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
            // It has gone meanwhile, or is no bridge's port any more.
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => Ok(()),
            result => result.map_err(|source| HairpinError::Set { name, on, source }),
        }
    }

    fn remember(&mut self, ours: Ours) -> Result<(), HairpinError> {
        if ours == self.ours {
            return Ok(());
        }
        if ours.is_empty() {
            self.memory.remove()?;
        } else {
            self.memory.write(&ours)?;
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

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    /// What is the mesh's once that has begun.
    ours: Ours,
    /// Ports to put into hairpin mode, all of them in `ours`.
    on: Ours,
    /// Ports to put back, all of them in `ours` until that is done.
    off: Ours,
}

/// What leads from what is found to what is wanted.
fn steps(wanted: &BTreeSet<u32>, ours: &Ours, found: &Found) -> Steps {
    let mut steps = Steps::default();
    for (&index, port) in found {
        let is_ours = ours.get(&index) == Some(&port.name);
        let change = match (wanted.contains(&index), port.hairpin) {
            (true, false) => Some(&mut steps.on),
            (false, true) if is_ours => Some(&mut steps.off),
            (true, true) if is_ours => None,
            // Never ours, or somebody has put it back already.
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
    fn a_port_that_is_so_already_is_not_ours() {
        let found = found(&[(7, "veth7", true)]);
        assert_eq!(steps(&[7].into(), &Ours::new(), &found), Steps::default());
        assert_eq!(steps(&[].into(), &Ours::new(), &found), Steps::default());
    }

    #[test]
    fn what_is_set_stays_ours_while_it_is_wanted_and_is_put_back_then() {
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
    fn what_somebody_has_put_back_is_set_again_or_forgotten() {
        let (ours, found) = (ports(&[(7, "veth7")]), found(&[(7, "veth7", false)]));
        assert_eq!(steps(&[7].into(), &ours, &found).on, ours);
        assert_eq!(steps(&[].into(), &ours, &found), Steps::default());
    }

    #[test]
    fn an_interface_that_has_gone_is_forgotten_though_another_has_its_index() {
        let ours = ports(&[(7, "veth7")]);
        assert_eq!(steps(&[7].into(), &ours, &Found::new()), Steps::default());
        let another = found(&[(7, "veth9", true)]);
        assert_eq!(steps(&[].into(), &ours, &another), Steps::default());
        assert_eq!(steps(&[7].into(), &ours, &another), Steps::default());
    }
}
