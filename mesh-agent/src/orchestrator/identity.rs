//! This node's identity in the cluster: its id, kept in a file and used by no other node, and its block of
//! mesh addresses, claimed in the store.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_orchestrator::{
    cluster::Registration,
    objects::NodeId,
    store::{Expected, InvalidKey, Key, PAGE, Prefix, Store, StoreError, Transaction, membership::node_key},
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::worker::AddressBlock;

/// File below the state folder that holds the node's id.
const IDENTITY_FILE: &str = "node-id";
/// Pause between checks whether another node uses this node's id.
const PACE: Duration = Duration::from_millis(250);
/// The length of ids.
const ID_CHARS: usize = 25;
/// The prefix of the keys under which blocks of addresses are claimed.
const BLOCKS: [&str; 2] = ["mesh", "blocks"];
/// Claims lost to other nodes before this one gives up.
const ATTEMPTS: usize = 64;

/// The node has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file with the node's id cannot be read or written.
    #[error("cannot use {} (--state-dir)", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} does not contain a node id: restore it, or remove it to join as a new node", .0.display()
    )]
    NoIdentity(PathBuf),
    /// Another node uses the same id.
    #[error(
        "another node, at {address}, uses this node's id ({id}): if this machine or its --state-dir is a copy, remove \
         {} to join as a new node; if the node has moved, stop the agent there",
        path.display()
    )]
    Taken {
        /// The id.
        id: NodeId,
        /// The other node's address.
        address: String,
        /// The file with the id.
        path: PathBuf,
    },
    /// Another worker shows the same certificate, or one of the same name.
    #[error(
        "another node, at {address}, is the worker {name}: give each worker a certificate of its own \
         (--agents-certificate), whose common name is its name; if the node has moved, stop the agent there"
    )]
    SameName {
        /// The name in the certificate.
        name: String,
        /// The other node's address.
        address: String,
    },
    /// The store failed.
    #[error("cannot read or claim this node's id and addresses in the store")]
    Store(#[from] StoreError),
    /// The block's number is not a valid key.
    #[error("cannot claim a block of addresses in the store")]
    Key(#[from] InvalidKey),
    /// There are more nodes than blocks.
    #[error(
        "the cluster has no free block of addresses: more than {} nodes have joined it",
        AddressBlock::COUNT
    )]
    Full,
}

/// Where a node's id is from.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// A file in this folder.
    File(PathBuf),
    /// This name in a worker's certificate.
    Certificate(String),
}

impl Kept {
    fn taken(&self, id: &NodeId, address: String) -> IdentityError {
        match self {
            Self::File(folder) => IdentityError::Taken {
                id: id.clone(),
                address,
                path: folder.join(IDENTITY_FILE),
            },
            Self::Certificate(name) => IdentityError::SameName {
                name: name.clone(),
                address,
            },
        }
    }
}

/// The node's id; created at the first start.
///
/// # Errors
/// When its file cannot be read, written or parsed.
pub(super) fn identity(folder: &Path, seed: u128) -> Result<NodeId, IdentityError> {
    let path = folder.join(IDENTITY_FILE);
    let failed = |source| IdentityError::File {
        path: path.clone(),
        source,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            let sound = id.len() == ID_CHARS && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if sound {
                Ok(NodeId::from(id))
            } else {
                Err(IdentityError::NoIdentity(path))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(folder).map_err(failed)?;
            let id = NodeId::derive(seed, &["node"]);
            // Atomically: a truncated id would lock this node out.
            let draft = folder.join(format!("{IDENTITY_FILE}.new"));
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&draft).map_err(failed)?;
            io::Write::write_all(&mut file, format!("{id}\n").as_bytes()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            std::fs::rename(&draft, &path).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Waits until no agent at another address is registered with this node's id. The registration of an agent
/// that was killed there expires only after a while.
///
/// # Errors
/// When one is still registered after `patience`, or the store fails.
pub(super) async fn ensure_unique(
    store: &dyn Store,
    node: &NodeId,
    address: Ipv4Addr,
    kept: &Kept,
    patience: Duration,
) -> Result<(), IdentityError> {
    let key = node_key(node.as_str())?;
    let address = address.to_string();
    let end = Instant::now() + patience;
    let mut warned = false;
    loop {
        let stored = store.get(&key).await?;
        let other = stored
            .and_then(|entry| serde_json::from_slice::<Registration>(&entry.value).ok())
            .filter(|registration| registration.address != address);
        let Some(other) = other else {
            return Ok(());
        };
        if Instant::now() >= end {
            return Err(kept.taken(node, other.address));
        }
        if !std::mem::replace(&mut warned, true) {
            warn!(
                address = other.address,
                "another node uses this node's id; waiting for its registration to expire"
            );
        }
        sleep(PACE).await;
    }
}

/// The node's block of addresses: the one that it already has, or else the first free one.
///
/// # Errors
/// When the store fails, or no block is free.
pub(super) async fn claim_block(store: &dyn Store, node: &NodeId) -> Result<AddressBlock, IdentityError> {
    let prefix = Prefix::new(BLOCKS)?;
    for _ in 0..ATTEMPTS {
        let entries = store.list(&prefix, PAGE).await?.entries().await?;
        let claims: BTreeMap<u32, &[u8]> = entries
            .iter()
            .filter_map(|entry| Some((entry.key.name().parse().ok()?, entry.value.as_slice())))
            .collect();
        let own = claims
            .iter()
            .find(|(_, holder)| **holder == node.as_str().as_bytes());
        if let Some(block) = own.and_then(|(number, _)| AddressBlock::new(*number)) {
            return Ok(block);
        }
        let free = (0..AddressBlock::COUNT).find(|number| !claims.contains_key(number));
        let (Some(number), Some(block)) = (free, free.and_then(AddressBlock::new)) else {
            return Err(IdentityError::Full);
        };
        let number = format!("{number:05}");
        let key = Key::new(BLOCKS.into_iter().chain([number.as_str()]))?;
        let transaction = Transaction::new()
            .expect(key.clone(), Expected::Absent)
            .put(key, node.as_str());
        match store.commit(transaction).await {
            Ok(_) => return Ok(block),
            // Either another node claimed it first, or this one did and the answer was lost.
            Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(IdentityError::Full)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use mesh_orchestrator::store::{Heartbeat, membership::NodeSession, redb::RedbStore};

    use super::*;

    #[test]
    fn a_node_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let id = identity(folder.path(), 7).unwrap();
        assert_eq!(identity(folder.path(), 8).unwrap(), id);
        std::fs::write(folder.path().join(IDENTITY_FILE), "half").unwrap();
        assert!(matches!(
            identity(folder.path(), 7),
            Err(IdentityError::NoIdentity(_))
        ));
    }

    #[tokio::test]
    async fn an_id_in_use_elsewhere_is_refused_until_its_registration_ends() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(folder.path().join("store.redb")).unwrap());
        let id = NodeId::derive(7, &["node"]);
        let heartbeat = Heartbeat {
            interval: Duration::from_millis(50),
            missed: 3,
        };
        let registration = Registration {
            address: "10.0.0.1".to_owned(),
            ..Registration::default()
        };
        let key = node_key(id.as_str()).unwrap();
        let value = serde_json::to_vec(&registration).unwrap();
        let other = NodeSession::start(Arc::clone(&store), key, value, heartbeat);
        other.present().wait_for(|present| *present).await.unwrap();
        let ask_as = |kept: Kept, address: [u8; 4], patience: u64| {
            let (store, id) = (Arc::clone(&store), id.clone());
            async move {
                let patience = Duration::from_millis(patience);
                ensure_unique(store.as_ref(), &id, address.into(), &kept, patience).await
            }
        };
        let ask = |address, patience| ask_as(Kept::File(folder.path().to_owned()), address, patience);
        // The same node, after a restart.
        ask([10, 0, 0, 1], 0).await.unwrap();
        let error = ask([10, 0, 0, 2], 300).await.unwrap_err().to_string();
        assert!(
            error.contains("at 10.0.0.1") && error.contains("node-id"),
            "{error}"
        );
        // A worker has no such file.
        let worker = Kept::Certificate("edge1".to_owned());
        let error = ask_as(worker, [10, 0, 0, 2], 300).await.unwrap_err().to_string();
        assert!(
            error.contains("at 10.0.0.1") && error.contains("--agents-certificate"),
            "{error}"
        );
        let (silent, ()) = tokio::join!(ask([10, 0, 0, 2], 60_000), other.withdraw());
        silent.unwrap();
    }

    #[tokio::test]
    async fn each_node_has_a_block_of_its_own_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(folder.path().join("store.redb")).unwrap();
        let nodes: Vec<NodeId> = (0..4).map(|seed| NodeId::derive(seed, &["node"])).collect();
        let first = |block: AddressBlock| block.free(&BTreeSet::new(), None).unwrap();
        let claims = nodes.iter().map(|node| claim_block(&store, node));
        let blocks = futures_util::future::try_join_all(claims).await.unwrap();
        let addresses: BTreeSet<_> = blocks.iter().copied().map(first).collect();
        assert_eq!(addresses.len(), nodes.len());
        for (node, block) in nodes.iter().zip(blocks) {
            assert_eq!(claim_block(&store, node).await.unwrap(), block);
        }
    }
}
