//! Where each object is stored, and how. Imports `objects` and the store's plain data.
//!
//! | key | what |
//! |---|---|
//! | `/services/<id>` | a service, as a revision; old ones at `/history/services/<id>/<number>` |
//! | `/tasks/<id>`, `/nodes/<id>` | a task, a node |
//! | `/specs/<service id>/<task version>` | what the tasks of that version run, while there are any |
//! | `/ports/ledger` | the published ports of services |
//! | `/guards/services` | written with each change of a specification, so that names and ports stay unique |
//! | `/ephemeral/nodes/<id>` | a node's registration |
//! | `/ephemeral/elections/control/leader` | the leader |
//! | `/guards/workers` | written by a manager before it shows a worker its mirror, which is then up to date |
//! | `/restore/unfinished` | present while a backup is being restored |

mod task;

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

pub(super) use self::task::StoredTask;
use super::{Registration, Unreadable};
use crate::{
    objects::{Node, NodeId, NodeStatus, PortLedger, Service, ServiceId, TaskId, Timestamp},
    spec::TaskSpec,
    store::{
        Entry, InvalidKey, Key,
        later::{self, LaterFields},
        membership::{self, Leader},
        revisions::Revised,
    },
};

/// The kind under which services' revisions are kept.
pub(super) const SERVICES: &str = "services";

/// The kind of the specifications of tasks.
const SPECS: &str = "specs";

/// The election whose winner runs the control loops.
pub(super) const ELECTION: &str = "control";

/// What a key names, in an order in which objects can refer to each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Ports,
    Node(NodeId),
    Service(ServiceId),
    /// A service's task version.
    Spec(ServiceId, u64),
    Task(TaskId),
    Guard,
    Registration(NodeId),
    Leader,
    Restore,
    /// Not part of the mirror: secrets, tokens, old revisions.
    Other,
}

/// What an entry holds.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    Service(Revised<Arc<Service>>),
    Spec(ServiceId, u64, Arc<TaskSpec>),
    Task(Box<StoredTask>),
    Node(Box<Node>),
    Ports(PortLedger),
    Registration(NodeId, Box<Registration>),
    Leader(Option<Leader>),
    Guard,
    Restore,
    Other,
}

impl Name {
    /// Its key; `None` if it is not mirrored.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Service(id) => service(id),
            Self::Spec(service, version) => spec(service, *version),
            Self::Task(id) => task(id),
            Self::Node(id) => node(id),
            Self::Ports => ports(),
            Self::Guard => guard(),
            Self::Registration(id) => registration(id),
            Self::Leader => membership::election_key(ELECTION),
            Self::Restore => restore(),
            Self::Other => return None,
        }
        .ok()
    }
}

pub(super) fn name(key: &Key) -> Name {
    let segments: Vec<&str> = key.segments().collect();
    match segments.as_slice() {
        [SERVICES, id] => Name::Service(ServiceId::from(*id)),
        [SPECS, service, version] => match version.parse() {
            Ok(version) => Name::Spec(ServiceId::from(*service), version),
            Err(_) => Name::Other,
        },
        ["tasks", id] => Name::Task(TaskId::from(*id)),
        ["nodes", id] => Name::Node(NodeId::from(*id)),
        ["ports", "ledger"] => Name::Ports,
        ["guards", SERVICES] => Name::Guard,
        ["ephemeral", "nodes", id] => Name::Registration(NodeId::from(*id)),
        ["ephemeral", "elections", ELECTION, "leader"] => Name::Leader,
        ["restore", "unfinished"] => Name::Restore,
        _ => Name::Other,
    }
}

/// Whether a key names what tasks run.
pub(super) fn is_spec(key: &Key) -> bool {
    key.segments().next() == Some(SPECS)
}

/// Reads an entry, and what a later release has added to it.
pub(super) fn read(entry: &Entry) -> Result<(Stored, Option<LaterFields>), Unreadable> {
    Ok(match name(&entry.key) {
        Name::Service(_) => decode(entry, Stored::Service)?,
        Name::Spec(service, version) => decode(entry, |spec| Stored::Spec(service, version, spec))?,
        Name::Task(_) => decode(entry, Stored::Task)?,
        Name::Node(_) => decode(entry, Stored::Node)?,
        Name::Ports => decode(entry, Stored::Ports)?,
        // That a node is registered matters even if the content cannot be read.
        Name::Registration(node) => {
            let registration = serde_json::from_slice(&entry.value).unwrap_or_default();
            (Stored::Registration(node, registration), None)
        }
        Name::Leader => {
            let leader = decode(entry, |leader| Stored::Leader(Some(leader)));
            (leader.map_or(Stored::Leader(None), |(leader, _)| leader), None)
        }
        Name::Guard => (Stored::Guard, None),
        Name::Restore => (Stored::Restore, None),
        Name::Other => (Stored::Other, None),
    })
}

fn decode<T>(
    entry: &Entry,
    stored: impl FnOnce(T) -> Stored,
) -> Result<(Stored, Option<LaterFields>), Unreadable>
where
    T: Serialize + DeserializeOwned,
{
    match later::read(&entry.value) {
        Ok((object, later)) => Ok((stored(object), later)),
        Err(source) => Err(Unreadable {
            key: entry.key.clone(),
            source,
        }),
    }
}

/// The stored bytes of an object, with what a later release has added to it.
pub(super) fn encode<T: Serialize>(
    key: &Key,
    object: &T,
    later: Option<&LaterFields>,
) -> Result<Vec<u8>, Unreadable> {
    later::write(object, later).map_err(|source| Unreadable {
        key: key.clone(),
        source,
    })
}

/// The stored bytes of an object of a backup: a node that it says was ready may be gone, and is unknown
/// until it registers. What cannot be read is left for the mirror to report.
pub(super) fn unheard(key: &Key, value: Vec<u8>, now: Timestamp) -> Vec<u8> {
    if !matches!(name(key), Name::Node(_)) {
        return value;
    }
    match later::read::<Node>(&value) {
        Ok((mut node, later)) => {
            node.status = NodeStatus::Unknown;
            node.status_since = now;
            encode(key, &node, later.as_ref()).unwrap_or(value)
        }
        Err(_) => value,
    }
}

pub(super) fn service(id: &ServiceId) -> Result<Key, InvalidKey> {
    Key::new([SERVICES, id.as_str()])
}

/// What the tasks of a service's task version run.
pub(super) fn spec(service: &ServiceId, version: u64) -> Result<Key, InvalidKey> {
    Key::new([SPECS, service.as_str(), &version.to_string()])
}

pub(super) fn task(id: &TaskId) -> Result<Key, InvalidKey> {
    Key::new(["tasks", id.as_str()])
}

pub(super) fn node(id: &NodeId) -> Result<Key, InvalidKey> {
    Key::new(["nodes", id.as_str()])
}

pub(super) fn ports() -> Result<Key, InvalidKey> {
    Key::new(["ports", "ledger"])
}

pub(super) fn guard() -> Result<Key, InvalidKey> {
    Key::new(["guards", SERVICES])
}

/// Written by a manager that has to know that its mirror is up to date.
pub(super) fn fresh() -> Result<Key, InvalidKey> {
    Key::new(["guards", "workers"])
}

pub(super) fn restore() -> Result<Key, InvalidKey> {
    Key::new(["restore", "unfinished"])
}

pub(super) fn registration(id: &NodeId) -> Result<Key, InvalidKey> {
    membership::node_key(id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_names_the_object_that_it_was_made_for() {
        let keys = [
            (service(&ServiceId::from("s")), Name::Service("s".into())),
            (spec(&ServiceId::from("s"), 7), Name::Spec("s".into(), 7)),
            (task(&TaskId::from("t")), Name::Task("t".into())),
            (node(&NodeId::from("n")), Name::Node("n".into())),
            (registration(&NodeId::from("n")), Name::Registration("n".into())),
            (membership::election_key(ELECTION), Name::Leader),
            (ports(), Name::Ports),
            (guard(), Name::Guard),
            (restore(), Name::Restore),
            (Key::new(["history", "services", "s", "1"]), Name::Other),
            (Key::new(["secrets", "s"]), Name::Other),
            (Key::new(["specs", "s", "latest"]), Name::Other),
        ];
        for (key, expected) in keys {
            let key = key.unwrap();
            assert_eq!(name(&key), expected);
            assert_eq!(expected.key(), Some(key).filter(|_| expected != Name::Other));
        }
    }
}
