//! A wake-up call between tasks: something has changed, check now. Hints that arrive before the last one
//! was acted on merge into one.

use std::sync::Arc;

use tokio::sync::Notify;

/// Asks a source (or the certificate watcher) to check at once rather than at its next poll.
#[derive(Clone, Debug, Default)]
pub struct HintHandle(Arc<Notify>);

impl HintHandle {
    /// Sender and receiver share this type: the receiver awaits [`HintHandle::hinted`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a hint. Never blocks; the hint is kept until it is received.
    pub fn hint(&self) {
        self.0.notify_one();
    }

    /// Waits for the next hint, or returns at once if one is pending. Cancel safe.
    pub async fn hinted(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_sent_before_they_are_awaited_merge_into_one() {
        let handle = HintHandle::new();
        handle.hint();
        handle.hint();
        handle.hinted().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(10), handle.hinted()).await;
        assert!(again.is_err(), "the second hint was not merged");
    }
}
