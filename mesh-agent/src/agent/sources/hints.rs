//! Hints to whichever source is running.

use std::sync::{Arc, Mutex, PoisonError};

use crate::source::HintHandle;

/// Passes hints on; the running source registers its handles.
#[derive(Clone, Default)]
pub(in crate::agent) struct SourceHints(Arc<Mutex<Handles>>);

#[derive(Default)]
struct Handles {
    source: HintHandle,
    certificates: HintHandle,
}

impl SourceHints {
    /// An event suggests that the cluster is about to change. Hardly blocks.
    pub(in crate::agent) fn hint(&self) {
        self.with(|handles| handles.source.hint());
    }

    /// Rereads certificates and cluster.
    pub(in crate::agent) fn reload(&self) {
        self.with(|handles| {
            handles.certificates.hint();
            handles.source.hint();
        });
    }

    /// Sends the hints about the cluster to this handle from now on.
    pub(super) fn set_source(&self, handle: HintHandle) {
        self.with(|handles| handles.source = handle);
    }

    /// Sends the requests to reread certificates to this handle from now on.
    pub(super) fn set_certificates(&self, handle: HintHandle) {
        self.with(|handles| handles.certificates = handle);
    }

    fn with(&self, act: impl FnOnce(&mut Handles)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
