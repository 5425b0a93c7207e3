//! The simulated store's side of the network: what etcd guarantees, in memory. Every commit is shown to the
//! oracle.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_orchestrator::store::{
    Entry, Event, Key, Prefix, Revision, StoreError, Transaction, WatchBatch, Write, is_ephemeral,
};
use tokio::{sync::watch, time::Instant};

use super::oracle::Oracle;

/// The store's name in messages.
pub(crate) const NAME: &str = "the simulated store";

/// Entries, their history and leases.
#[derive(Debug)]
pub(crate) struct Server {
    entries: BTreeMap<Key, Entry>,
    revision: u64,
    log: Vec<WatchBatch>,
    /// Watches cannot start before this revision.
    compacted: u64,
    leases: BTreeMap<i64, Granted>,
    next_lease: i64,
    newest: watch::Sender<u64>,
    /// On purpose, to see that the simulation notices: conditions are not checked.
    pub(crate) ignores_conditions: bool,
    /// What must hold after every commit.
    pub(crate) oracle: Oracle,
    /// The first invariant that was violated.
    pub(crate) violation: Option<String>,
    /// Commits are printed.
    is_traced: bool,
    /// A hash of everything that was committed.
    pub(crate) digest: u64,
}

#[derive(Debug)]
struct Granted {
    keys: BTreeSet<Key>,
    expires: Instant,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            revision: 1,
            log: Vec::new(),
            compacted: 0,
            leases: BTreeMap::new(),
            next_lease: 1,
            newest: watch::Sender::new(1),
            ignores_conditions: false,
            oracle: Oracle::default(),
            violation: None,
            digest: 0,
            is_traced: std::env::var_os("MESH_FAULTS_TRACE").is_some(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        self.entries.get(key).cloned()
    }

    pub(crate) fn list(&self, prefix: &Prefix) -> Vec<Entry> {
        let below = |entry: &&Entry| prefix.contains(&entry.key);
        self.entries.values().filter(below).cloned().collect()
    }

    pub(crate) fn compacted(&self) -> Revision {
        Revision(self.compacted)
    }

    pub(crate) fn compact(&mut self, before: Revision) {
        self.compacted = self.compacted.max(before.0.min(self.revision));
        let compacted = self.compacted;
        self.log.retain(|batch| batch.revision.0 > compacted);
    }

    /// The next changes below a prefix, and up to which revision they are complete.
    pub(crate) fn changes(
        &self,
        prefix: &Prefix,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<WatchBatch>, Revision), StoreError> {
        if after.0 < self.compacted || after.0 > self.revision {
            return Err(StoreError::Compacted {
                requested: after,
                oldest: Revision(self.compacted),
            });
        }
        let mut batches = Vec::new();
        let start = self.log.partition_point(|batch| batch.revision <= after);
        for batch in &self.log[start..] {
            if batches.len() == limit {
                return Ok((batches, Revision(batch.revision.0 - 1)));
            }
            let events: Vec<Event> = batch
                .events
                .iter()
                .filter(|event| prefix.contains(event.key()))
                .cloned()
                .collect();
            if !events.is_empty() {
                batches.push(WatchBatch {
                    revision: batch.revision,
                    events,
                });
            }
        }
        Ok((batches, self.revision()))
    }

    /// Commits a transaction if its conditions hold.
    pub(crate) fn commit(
        &mut self,
        transaction: &Transaction,
        lease: Option<i64>,
    ) -> Result<Revision, StoreError> {
        transaction.check()?;
        for (key, expected) in transaction.conditions() {
            let found = self.entries.get(key).map(|entry| entry.modified);
            if !expected.holds(found) && !self.ignores_conditions {
                return Err(StoreError::Conflict {
                    key: key.clone(),
                    expected,
                    found,
                });
            }
        }
        if let Some(lease) = lease
            && !self.leases.contains_key(&lease)
        {
            return Err(unavailable("commit under a lease", "the lease has ended"));
        }
        let revision = Revision(self.revision + 1);
        let mut events = Vec::new();
        for (key, write) in transaction.writes() {
            match write {
                Write::Put(value) => {
                    let known = self.entries.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        created: known.map_or(revision, |entry| entry.created),
                        modified: revision,
                        version: known.map_or(1, |entry| entry.version + 1),
                    };
                    self.detach(key);
                    if let Some(lease) = lease.filter(|_| is_ephemeral(key))
                        && let Some(granted) = self.leases.get_mut(&lease)
                    {
                        granted.keys.insert(key.clone());
                    }
                    self.entries.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                }
                Write::Delete => {
                    if self.entries.remove(key).is_some() {
                        self.detach(key);
                        events.push(Event::Delete(key.clone()));
                    }
                }
            }
        }
        self.record(revision, events);
        Ok(self.revision())
    }

    fn detach(&mut self, key: &Key) {
        for granted in self.leases.values_mut() {
            granted.keys.remove(key);
        }
    }

    fn record(&mut self, revision: Revision, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.revision = revision.0;
        if self.is_traced {
            trace(revision, &events);
        }
        for event in &events {
            let value: &[u8] = match event {
                Event::Put(entry) => &entry.value,
                Event::Delete(_) => b"",
            };
            for byte in event.key().as_str().bytes().chain(value.iter().copied()) {
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
            }
        }
        let batch = WatchBatch { revision, events };
        if let Err(text) = self.oracle.commit(&batch)
            && self.violation.is_none()
        {
            self.violation = Some(format!("at revision {revision}: {text}"));
        }
        self.log.push(batch);
        self.newest.send_replace(self.revision);
    }

    pub(crate) fn grant(&mut self, lives: Duration) -> i64 {
        let id = self.next_lease;
        self.next_lease += 1;
        let granted = Granted {
            keys: BTreeSet::new(),
            expires: Instant::now() + lives,
        };
        self.leases.insert(id, granted);
        id
    }

    /// Renews a lease; false if it has ended.
    pub(crate) fn renew(&mut self, lease: i64, lives: Duration) -> bool {
        match self.leases.get_mut(&lease) {
            Some(granted) => {
                granted.expires = Instant::now() + lives;
                true
            }
            None => false,
        }
    }

    /// Ends a lease: its keys are removed by one transaction.
    pub(crate) fn revoke(&mut self, lease: i64) {
        let Some(granted) = self.leases.remove(&lease) else {
            return;
        };
        let revision = Revision(self.revision + 1);
        let mut events = Vec::new();
        for key in granted.keys {
            self.entries.remove(&key);
            events.push(Event::Delete(key));
        }
        self.record(revision, events);
    }

    /// Ends the leases that were not renewed in time.
    pub(crate) fn expire(&mut self) {
        let now = Instant::now();
        let is_over = |(_, granted): &(&i64, &Granted)| granted.expires <= now;
        let over: Vec<i64> = self.leases.iter().filter(is_over).map(|(id, _)| *id).collect();
        for lease in over {
            self.revoke(lease);
        }
    }
}

fn trace(revision: Revision, events: &[Event]) {
    for event in events {
        match event {
            Event::Put(entry) => {
                println!(
                    "{revision} {} = {}",
                    entry.key,
                    String::from_utf8_lossy(&entry.value)
                );
            }
            Event::Delete(key) => println!("{revision} {key} is gone"),
        }
    }
}

/// The store cannot be reached: nothing was changed.
pub(crate) fn unavailable(operation: &'static str, why: &'static str) -> StoreError {
    StoreError::Unavailable {
        operation,
        store: NAME.to_owned(),
        advice: "it is simulated",
        source: why.into(),
    }
}

/// Whether the transaction was committed is not known.
pub(crate) fn unknown() -> StoreError {
    StoreError::OutcomeUnknown {
        store: NAME.to_owned(),
        source: "no answer".into(),
    }
}
