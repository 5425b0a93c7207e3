//! Raw requests to the engine's API, for what the client library cannot do.

use std::time::Duration;

use super::client::Connection;

/// A year: the HTTP client overflows on `Duration::MAX`.
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Connection {
    /// A POST without a time limit: the caller sets one.
    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(self.url(path)).timeout(UNLIMITED)
    }

    /// A GET without a time limit: the caller sets one.
    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(self.url(path)).timeout(UNLIMITED)
    }
}
