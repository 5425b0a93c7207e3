//! What a worker may write: a pure function from (worker, stored object, new object) to the bytes to store,
//! or a refusal. What is stored is always made from the stored object, so that nothing else can change.
//!
//! | object | what may change |
//! |---|---|
//! | a task of the worker | its status, forwards, with an address of the node's own block |
//! | the worker's own node | address, engine labels, platform, resources |
//! | its registration, under its own lease | everything but the address of another node |
//!
//! Imports `stored`.

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive};

use super::super::{
    Registration,
    stored::{self, Name, StoredTask},
};
use crate::{
    objects::{Node, NodeId, State, TaskState, TaskStatus, Timestamp},
    store::{Key, later},
};

/// The longest message or error of a report: agents cut theirs before.
const MAX_TEXT: usize = 4096 + 16;
/// The longest of all short texts, such as a container's id or a release.
const MAX_NAME: usize = 256;
/// The largest description of a node, and the largest registration.
const MAX_BYTES: usize = 64 << 10;
/// The most keys of the tunnel that a node may announce.
const MAX_KEYS: usize = 16;

/// What a write is checked against besides the stored object.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The addresses that the worker's tasks may have; none are known while it has no block.
    pub(super) addresses: Option<RangeInclusive<Ipv4Addr>>,
    /// The addresses of other nodes.
    pub(super) others: BTreeSet<Ipv4Addr>,
    /// The manager's time: what a worker reports is not later.
    pub(super) now: Timestamp,
}

impl Facts {
    pub(super) fn of(
        state: &State,
        worker: &NodeId,
        addresses: Option<RangeInclusive<Ipv4Addr>>,
        now: Timestamp,
    ) -> Self {
        let nodes = state.nodes().values().filter(|node| node.id != *worker);
        Self {
            addresses,
            others: nodes.filter_map(|node| node.address.parse().ok()).collect(),
            now,
        }
    }
}

/// Why a worker may not write something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is no object that workers write.
    #[error("workers do not write {0}")]
    Kind(Key),
    /// The object is another node's.
    #[error("{0} is not of this node")]
    NotOwn(Key),
    /// More than the part that the node reports has changed.
    #[error("this node may not change that part of {key}: {what}")]
    Part { key: Key, what: &'static str },
    /// The value cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(Key),
}

/// The bytes to store for a worker's write of an object that is stored as `old`.
///
/// # Errors
/// When the worker may not write it.
pub(super) fn check(
    worker: &NodeId,
    key: &Key,
    old: Option<&[u8]>,
    new: &[u8],
    facts: &Facts,
) -> Result<Vec<u8>, Refusal> {
    let unreadable = || Refusal::Unreadable(key.clone());
    match stored::name(key) {
        Name::Task(id) => {
            let (old, kept) =
                later::read::<StoredTask>(old.ok_or_else(unreadable)?).map_err(|_| unreadable())?;
            if old.node.as_ref() != Some(worker) || old.id != id {
                return Err(Refusal::NotOwn(key.clone()));
            }
            let (new, _) = later::read::<StoredTask>(new).map_err(|_| unreadable())?;
            let checked = task(key, old, new, facts)?;
            stored::encode(key, &checked, kept.as_ref()).map_err(|_| unreadable())
        }
        Name::Node(id) if id == *worker => {
            let (old, kept) = later::read::<Node>(old.ok_or_else(unreadable)?).map_err(|_| unreadable())?;
            if new.len() > MAX_BYTES {
                return Err(part(key, "it is too large"));
            }
            let (new, _) = later::read::<Node>(new).map_err(|_| unreadable())?;
            let checked = node(key, old, new, facts)?;
            stored::encode(key, &checked, kept.as_ref()).map_err(|_| unreadable())
        }
        Name::Registration(id) if id == *worker => {
            if new.len() > MAX_BYTES {
                return Err(part(key, "it is too large"));
            }
            let new: Registration = serde_json::from_slice(new).map_err(|_| unreadable())?;
            registration(key, &new, facts)?;
            stored::encode(key, &new, None).map_err(|_| unreadable())
        }
        Name::Node(_) | Name::Registration(_) => Err(Refusal::NotOwn(key.clone())),
        // Listed one by one, so that a new kind of object is decided about here.
        Name::Service(_)
        | Name::Spec(..)
        | Name::Ports
        | Name::Guard
        | Name::Leader
        | Name::Restore
        | Name::Other => Err(Refusal::Kind(key.clone())),
    }
}

fn part(key: &Key, what: &'static str) -> Refusal {
    Refusal::Part {
        key: key.clone(),
        what,
    }
}

fn task(key: &Key, old: StoredTask, new: StoredTask, facts: &Facts) -> Result<StoredTask, Refusal> {
    let status = &new.status;
    if status.state < old.status.state || status.state < TaskState::Accepted {
        return Err(part(key, "a task's state goes forwards"));
    }
    // These are the leader's to record.
    if status.state > TaskState::Rejected {
        return Err(part(key, "a node does not report this state"));
    }
    check_texts(key, status)?;
    if let Some(address) = status.address
        && old.status.address != Some(address)
        && !facts.addresses.as_ref().is_some_and(|own| own.contains(&address))
    {
        return Err(part(key, "the address is of another node's block"));
    }
    let may_set = |old: Option<_>, new: Option<_>| old.is_none() || old == new;
    if !may_set(old.started_at, new.started_at) || !may_set(old.finished_at, new.finished_at) {
        return Err(part(key, "when it started or ended"));
    }
    let known = (old.started_at, old.finished_at);
    let allowed = StoredTask {
        status: new.status.clone(),
        started_at: new.started_at,
        finished_at: new.finished_at,
        ..old
    };
    if allowed != new {
        return Err(part(key, "only its status"));
    }
    // The loops wait for times, which a clock that is wrong must not make later.
    let past = |time: Option<Timestamp>| time.map(|time| time.min(facts.now));
    Ok(StoredTask {
        status: TaskStatus {
            at: allowed.status.at.min(facts.now),
            ..allowed.status
        },
        // What another manager has recorded stays, even if its clock is ahead.
        started_at: known.0.or_else(|| past(allowed.started_at)),
        finished_at: known.1.or_else(|| past(allowed.finished_at)),
        ..allowed
    })
}

fn check_texts(key: &Key, status: &TaskStatus) -> Result<(), Refusal> {
    let error = status.error.as_deref().unwrap_or_default();
    let container = status.container.as_deref().unwrap_or_default();
    if status.message.len() > MAX_TEXT || error.len() > MAX_TEXT || container.len() > MAX_NAME {
        return Err(part(key, "a text is too long"));
    }
    Ok(())
}

fn node(key: &Key, old: Node, new: Node, facts: &Facts) -> Result<Node, Refusal> {
    check_address(key, &new.address, facts)?;
    let allowed = Node {
        address: new.address.clone(),
        engine_labels: new.engine_labels.clone(),
        platform: new.platform.clone(),
        resources: new.resources,
        ..old
    };
    match allowed == new {
        true => Ok(allowed),
        false => Err(part(key, "only its address and what its engine reports")),
    }
}

fn registration(key: &Key, new: &Registration, facts: &Facts) -> Result<(), Refusal> {
    check_address(key, &new.address, facts)?;
    let texts = [&new.datapath, &new.release, &new.engine_version];
    if texts.iter().any(|text| text.len() > MAX_NAME) {
        return Err(part(key, "a text is too long"));
    }
    if new.keys.as_ref().is_some_and(|keys| keys.len() > MAX_KEYS) {
        return Err(part(key, "too many keys"));
    }
    // Managers connect there.
    let logs = new
        .logs
        .as_deref()
        .map(|at| at.rsplit_once(':').map_or(at, |(host, _)| host));
    if logs.is_some_and(|host| host != new.address) {
        return Err(part(key, "its agent is asked at its own address"));
    }
    Ok(())
}

/// Peers send to a node's address, and take packets from it.
fn check_address(key: &Key, address: &str, facts: &Facts) -> Result<(), Refusal> {
    match address.parse::<Ipv4Addr>() {
        Ok(address) if facts.others.contains(&address) => Err(part(
            key,
            "the address is another node's; if that one is gone, remove it (node rm)",
        )),
        Ok(address) if !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() => {
            Ok(())
        }
        _ => Err(part(key, "the address is not one that nodes have")),
    }
}
