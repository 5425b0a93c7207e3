//! A hint: "something has changed, look now", passed between tasks without saying what. Hints that
//! come before the last one was acted on merge into one. May be used by every source and the feed.

use std::sync::Arc;

use tokio::sync::Notify;

/// Asks a source (or the certificate watcher) to look at once rather than at its next poll.
#[derive(Clone, Debug, Default)]
pub struct HintHandle(Arc<Notify>);

impl HintHandle {
    /// A handle and its listener are the same thing: whoever awaits [`HintHandle::hinted`] listens.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the hint; never blocks, and is remembered if nobody listens just now.
    pub fn hint(&self) {
        self.0.notify_one();
    }

    /// Waits for the next hint, or returns at once if one is waiting. Cancel safe.
    pub async fn hinted(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_given_before_anyone_listens_merge_into_one() {
        let handle = HintHandle::new();
        handle.hint();
        handle.hint();
        handle.hinted().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(10), handle.hinted()).await;
        assert!(again.is_err(), "the second hint was not merged");
    }
}
