//! Watching an etcd cluster across failures of its members: resumed where it broke, so that nothing is missed
//! or delivered twice. Depends on `connection`.

use std::{sync::Arc, time::Duration};

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse};

use super::{Call, Inner, revision, signed, unsigned};
use crate::store::{Entry, Event, Prefix, Revision, StoreError, Watch, WatchBatch, watch::WatchSender};

/// The pause before a broken watch is resumed; doubled each time, up to the second value.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long a member may take to confirm a watch.
const BEGIN: Duration = Duration::from_secs(5);

/// How an attempt to watch ended.
enum End {
    /// The watch was dropped, or has delivered its final error.
    Done,
    /// The member failed; try another one.
    Broken,
}

pub(super) async fn start(inner: &Arc<Inner>, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
    // A linearizable read: a higher revision is not of this cluster, and a compacted one cannot be read.
    let read = |at: Revision| {
        let options = GetOptions::new().with_revision(signed(at.0)).with_count_only();
        let key = inner.raw(prefix.as_str());
        async move {
            inner
                .connection
                .call("watch", Call::Read, |client| {
                    let (key, options) = (key.clone(), options.clone());
                    async move { client.kv_client().get(key, Some(options)).await }
                })
                .await
        }
    };
    let newest = revision(read(Revision(0)).await?.header());
    if after > newest {
        return Err(StoreError::Compacted {
            requested: after,
            oldest: newest,
        });
    }
    // From the revision itself, not the next one: etcd before 3.6 also drops the removals of the revision at
    // which it compacts.
    let at = after.max(Revision(1));
    if at <= newest
        && let Err(error) = read(at).await
    {
        return Err(match error {
            StoreError::Compacted { .. } => StoreError::Compacted {
                requested: after,
                oldest: newest,
            },
            other => other,
        });
    }
    let (inner, prefix) = (Arc::clone(inner), prefix.clone());
    Ok(Watch::start(move |sender| follow(inner, prefix, after, sender)))
}

async fn follow(inner: Arc<Inner>, prefix: Prefix, after: Revision, sender: WatchSender) {
    let mut delivered = after;
    let mut pause = RETRY.0;
    loop {
        let before = delivered;
        match follow_member(&inner, &prefix, &mut delivered, &sender).await {
            End::Done => return,
            End::Broken if delivered > before => pause = RETRY.0,
            End::Broken => pause = (pause * 2).min(RETRY.1),
        }
        tracing::debug!(store = inner.connection.name(), %prefix, %delivered, "resuming a broken watch");
        tokio::time::sleep(pause).await;
    }
}

/// Watches through one member until it fails.
async fn follow_member(
    inner: &Inner,
    prefix: &Prefix,
    delivered: &mut Revision,
    sender: &WatchSender,
) -> End {
    let (number, client) = inner.connection.member();
    let broken = || {
        inner.connection.avoid(number);
        End::Broken
    };
    let options = WatchOptions::new()
        .with_range(inner.raw(&prefix.end()))
        // Again from the revision delivered last, for the same reason as in `start`; `batches` leaves it out.
        .with_start_revision(signed(delivered.0.max(1)))
        .with_progress_notify();
    // An answer may carry many transactions.
    let mut watches = client.watch_client().max_decoding_message_size(usize::MAX);
    let begun = watches.watch(inner.raw(prefix.as_str()), Some(options));
    let Ok(Ok(mut stream)) = tokio::time::timeout(BEGIN, begun).await else {
        return broken();
    };
    loop {
        let Ok(Some(answer)) = stream.message().await else {
            return broken();
        };
        if answer.compact_revision() > 0 {
            let error = StoreError::Compacted {
                requested: *delivered,
                oldest: Revision(unsigned(answer.compact_revision())),
            };
            let _ = sender.send(Err(error)).await;
            return End::Done;
        }
        if answer.canceled() {
            return broken();
        }
        if answer.events().is_empty() {
            // A progress notification: there is nothing below the prefix up to here. The confirmation of the
            // watch is not one: it has the member's revision, not the watch's.
            if !answer.created() {
                *delivered = revision(answer.header()).max(*delivered);
            }
            continue;
        }
        let batches = match batches(inner, &answer, *delivered) {
            Ok(batches) => batches,
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return End::Done;
            }
        };
        for batch in batches {
            let revision = batch.revision;
            if sender.send(Ok(batch)).await.is_err() {
                return End::Done;
            }
            *delivered = revision;
        }
    }
}

/// The answer's events by transaction. etcd splits one over two answers only on request.
fn batches(
    inner: &Inner,
    answer: &WatchResponse,
    delivered: Revision,
) -> Result<Vec<WatchBatch>, StoreError> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    for event in answer.events() {
        let Some(found) = event.kv() else {
            continue;
        };
        let revision = Revision(unsigned(found.mod_revision()));
        if revision <= delivered {
            continue;
        }
        let key = inner.key(found.key())?;
        let event = match event.event_type() {
            EventType::Put => Event::Put(Entry {
                key,
                value: found.value().to_vec(),
                created: Revision(unsigned(found.create_revision())),
                modified: revision,
                version: unsigned(found.version()),
            }),
            EventType::Delete => Event::Delete(key),
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(WatchBatch {
                revision,
                events: vec![event],
            }),
        }
    }
    // A lease that ends removes its keys in no particular order.
    for batch in &mut batches {
        batch.events.sort_by(|one, other| one.key().cmp(other.key()));
    }
    Ok(batches)
}
