//! The store of several nodes: an etcd cluster (v3 API, 3.4 or newer). Depends on the store's trait and
//! plain data, and on etcd-client.

mod connection;
mod lease;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::{StreamExt, stream};

use self::connection::{Call, Connection, MAX_ANSWER_BYTES, is_too_large};
use super::{
    Entry, Expected, Heartbeat, Key, Lease, Listing, Prefix, Revision, SCHEMA, Store, StoreError,
    Transaction, Watch, Write, is_ephemeral,
};

pub use connection::{EtcdConfig, EtcdTls, EtcdTlsFile};

/// A store in an etcd cluster, shared by all nodes.
#[derive(Debug)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    root: String,
}

impl EtcdStore {
    /// Connects, and checks that this release knows the version of the stored data.
    ///
    /// # Errors
    /// [`StoreError::TooNew`]; [`StoreError::Unavailable`] when a majority of the cluster cannot be reached,
    /// or the configuration is invalid.
    pub async fn open(config: EtcdConfig) -> Result<Self, StoreError> {
        let connection = Connection::new(&config).await?;
        let store = Self {
            inner: Arc::new(Inner {
                connection,
                root: config.root,
            }),
        };
        store.check_schema().await?;
        Ok(store)
    }

    /// Uses renewed certificates from now on. What runs goes on with the ones before.
    ///
    /// # Errors
    /// When they cannot be used for TLS; nothing has changed then.
    pub async fn renew(&self, tls: EtcdTls) -> Result<(), StoreError> {
        self.inner.connection.renew(tls).await
    }

    /// Writes our schema to an empty store, or reads the existing one. It is outside of the listed keys.
    async fn check_schema(&self) -> Result<(), StoreError> {
        let name = format!("{}.schema", self.inner.root);
        let transaction = Txn::new()
            .when([Compare::create_revision(name.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(name.clone(), SCHEMA.to_string(), None)])
            .or_else([TxnOp::get(name, None)]);
        // Idempotent.
        let answer = self
            .inner
            .connection
            .call("open the store", Call::Read, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(());
        }
        let found = answer.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        let found = found.and_then(|found| found.value_str().ok()?.parse().ok());
        match found {
            Some(found) if found > SCHEMA => Err(StoreError::TooNew {
                store: self.describe(),
                found,
                known: SCHEMA,
            }),
            Some(_) => Ok(()),
            None => Err(self.inner.corrupt("its schema is not a number".to_owned())),
        }
    }
}

impl Inner {
    fn raw(&self, key: &str) -> String {
        format!("{}{key}", self.root)
    }

    fn corrupt(&self, detail: String) -> StoreError {
        StoreError::Corrupt {
            store: self.connection.name().to_owned(),
            detail,
        }
    }

    /// Our key for a key in etcd.
    fn key(&self, raw: &[u8]) -> Result<Key, StoreError> {
        std::str::from_utf8(raw)
            .ok()
            .and_then(|raw| raw.strip_prefix(self.root.as_str()))
            .and_then(|key| key.parse().ok())
            .ok_or_else(|| {
                let raw = String::from_utf8_lossy(raw);
                self.corrupt(format!("another program has put {raw:?} among our keys"))
            })
    }

    fn entry(&self, found: KeyValue) -> Result<Entry, StoreError> {
        let key = self.key(found.key())?;
        let (created, modified, version) = (found.create_revision(), found.mod_revision(), found.version());
        Ok(Entry {
            key,
            value: found.into_key_value().1,
            created: Revision(unsigned(created)),
            modified: Revision(unsigned(modified)),
            version: unsigned(version),
        })
    }

    /// A page of the entries below a prefix, at a revision (0: now), with its revision and whether there are
    /// more. Reads fewer entries if they are too large together.
    async fn page(&self, position: &mut Position) -> Result<(Vec<Entry>, Revision, bool), StoreError> {
        let begin = match &position.after {
            // The first string after the key.
            Some(key) => self.raw(key.as_str()) + "\0",
            None => self.raw(position.prefix.as_str()),
        };
        let end = self.raw(&position.prefix.end());
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(signed(position.page as u64))
                .with_revision(signed(position.revision.0));
            let answer = self
                .connection
                .call("list", Call::Read, |client| {
                    let (begin, options) = (begin.clone(), options.clone());
                    async move {
                        let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                        client.get(begin, Some(options)).await
                    }
                })
                .await;
            let mut answer = match answer {
                Ok(answer) => answer,
                Err(error) if is_too_large(&error) && position.page > 1 => {
                    position.page = (position.page / 8).max(1);
                    continue;
                }
                Err(StoreError::Compacted { .. }) => {
                    return Err(StoreError::Compacted {
                        requested: position.revision,
                        // The lower bound; etcd does not report it.
                        oldest: Revision(position.revision.0 + 1),
                    });
                }
                Err(error) => return Err(error),
            };
            let revision = revision(answer.header());
            let more = answer.more();
            let entries: Result<Vec<_>, _> = answer
                .take_kvs()
                .into_iter()
                .map(|found| self.entry(found))
                .collect();
            return Ok((entries?, revision, more));
        }
    }

    async fn commit(&self, transaction: &Transaction, lease: Option<&Lease>) -> Result<Revision, StoreError> {
        transaction.check()?;
        let compares: Vec<Compare> = transaction
            .conditions()
            .map(|(key, expected)| {
                let revision = match expected {
                    // An absent key has revision 0.
                    Expected::Absent => 0,
                    Expected::At(revision) => signed(revision.0),
                };
                Compare::mod_revision(self.raw(key.as_str()), CompareOp::Equal, revision)
            })
            .collect();
        let writes: Vec<TxnOp> = transaction
            .writes()
            .map(|(key, write)| {
                let raw = self.raw(key.as_str());
                match write {
                    Write::Put(value) => {
                        let options = lease
                            .filter(|_| is_ephemeral(key))
                            .map(|lease| PutOptions::new().with_lease(lease.id()));
                        TxnOp::put(raw, value.clone(), options)
                    }
                    Write::Delete => TxnOp::delete(raw, None),
                }
            })
            .collect();
        let finds: Vec<TxnOp> = transaction
            .conditions()
            .map(|(key, _)| TxnOp::get(self.raw(key.as_str()), Some(GetOptions::new().with_keys_only())))
            .collect();
        let call = if writes.is_empty() {
            Call::Read
        } else {
            Call::Write
        };
        let request = Txn::new().when(compares).and_then(writes).or_else(finds);
        let answer = self
            .connection
            .call("commit", call, |client| {
                let request = request.clone();
                async move { client.kv_client().txn(request).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(revision(answer.header()));
        }
        let found = answer.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(answer) => answer
                .kvs()
                .first()
                .map(|found| Revision(unsigned(found.mod_revision()))),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        transaction
            .conditions()
            .zip(found)
            .find(|((_, expected), found)| !expected.holds(*found))
            .map_or_else(
                || Err(self.corrupt("it refused a transaction whose conditions hold".to_owned())),
                |((key, expected), found)| {
                    Err(StoreError::Conflict {
                        key: key.clone(),
                        expected,
                        found,
                    })
                },
            )
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn describe(&self) -> String {
        self.inner.connection.name().to_owned()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let raw = self.inner.raw(key.as_str());
        let mut answer = self
            .inner
            .connection
            .call("read", Call::Read, |client| {
                let raw = raw.clone();
                async move { client.kv_client().get(raw, None).await }
            })
            .await?;
        answer
            .take_kvs()
            .into_iter()
            .next()
            .map(|found| self.inner.entry(found))
            .transpose()
    }

    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError> {
        let mut position = Position {
            inner: Arc::clone(&self.inner),
            prefix: prefix.clone(),
            page: page.max(1),
            revision: Revision(0),
            after: None,
        };
        // The first page is read now: it determines the revision of all pages.
        let (first, revision, more) = self.inner.page(&mut position).await?;
        position.revision = revision;
        position.after = first.last().map(|last| last.key.clone());
        let rest = stream::try_unfold((position, more), |(position, more)| position.next(more));
        let first = (!first.is_empty()).then_some(Ok(first));
        Ok(Listing {
            revision,
            pages: stream::iter(first).chain(rest).boxed(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.inner.commit(&transaction, None).await
    }

    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        lease::grant(&self.inner, heartbeat).await
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        if lease.is_lost() {
            return Err(self.inner.connection.unavailable(
                "commit under a lease",
                "the lease has ended",
                "no heartbeat was answered in time",
            ));
        }
        self.inner.commit(&transaction, Some(lease)).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        watch::start(&self.inner, prefix, after).await
    }

    /// etcd keeps everything and grows, unless auto-compaction is configured; so the leader compacts
    /// regularly.
    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        let revision = signed(before.0);
        let compacted = self
            .inner
            .connection
            .call("compact", Call::Read, |client| async move {
                client.kv_client().compact(revision, None).await
            })
            .await;
        match compacted {
            // Another client was faster.
            Ok(_) | Err(StoreError::Compacted { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The progress of a list.
struct Position {
    inner: Arc<Inner>,
    prefix: Prefix,
    page: usize,
    /// 0 before the first page.
    revision: Revision,
    after: Option<Key>,
}

impl Position {
    async fn next(mut self, more: bool) -> Result<Option<(Vec<Entry>, (Self, bool))>, StoreError> {
        if !more {
            return Ok(None);
        }
        let inner = Arc::clone(&self.inner);
        let (page, _, more) = inner.page(&mut self).await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.after = Some(last.key.clone());
        Ok(Some((page, (self, more))))
    }
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| unsigned(header.revision())))
}

/// etcd uses signed numbers that are never negative.
fn unsigned(number: i64) -> u64 {
    number.unsigned_abs()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
