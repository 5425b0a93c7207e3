//! What the agent lets its windows see: the last snapshot, and the data path's counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::ladder::Ladder;
use crate::{
    admin::{Introspect, View},
    datapath::{Counters, DatapathError, dump::Dump},
    source::SourceState,
};

/// The data path, programmed by the agent's loop and read by its windows.
#[derive(Clone)]
pub(super) struct SharedLadder(Arc<Mutex<Ladder>>);

impl SharedLadder {
    pub(super) fn new(ladder: Ladder) -> Self {
        Self(Arc::new(Mutex::new(ladder)))
    }

    /// Its calls are short; nobody holds this over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Ladder> {
        // A panic elsewhere ends the agent anyway; until then the kernel's maps are as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running agent as the admin socket and the metrics see it.
pub(super) struct Introspection {
    view: ArcSwap<View>,
    datapath: SharedLadder,
    source: watch::Receiver<SourceState>,
}

impl Introspection {
    pub(super) fn new(view: View, datapath: SharedLadder, source: watch::Receiver<SourceState>) -> Self {
        Self {
            view: ArcSwap::from_pointee(view),
            datapath,
            source,
        }
    }

    pub(super) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
    }
}

impl Introspect for Introspection {
    fn view(&self) -> Arc<View> {
        let view = self.view.load_full();
        // Confirmations wake nobody, so the snapshot may have an old one.
        let confirmed = self.source.borrow().confirmed;
        if view.source.confirmed == confirmed {
            return view;
        }
        let mut fresh = View::clone(&view);
        fresh.source.confirmed = confirmed;
        Arc::new(fresh)
    }

    fn counters(&self) -> Result<Counters, DatapathError> {
        self.datapath.lock().counters()
    }

    fn dump(&self, flows: usize) -> Result<Dump, DatapathError> {
        self.datapath.lock().dump(flows)
    }
}
