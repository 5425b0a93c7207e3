//! Traffic of the lab's nodes and client, by the test server's own client. Depends on `space`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Lab;
use crate::{
    command::{output, said},
    paths,
};

/// What came of one request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// The task that answered, e.g. `web.3`; empty when none did.
    pub task: String,
    /// The client's address as the replica saw it, `address:port`.
    pub peer: String,
    /// The client's address as the client sees it, `address:port`.
    pub local: String,
    /// How long it took, in milliseconds.
    pub millis: f64,
    /// `answered`, `refused`, `reset`, `timeout` or `error`.
    pub outcome: String,
    /// What went wrong; empty when nothing did.
    pub error: String,
}

impl Lab {
    /// Sends `count` requests one after the other, each on a new connection, and returns what came of
    /// each. A request that fails is a reply that says so.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn fetch(&self, from: &str, url: &str, count: usize) -> Result<Vec<Reply>> {
        self.fetch_with(from, url, count, &[])
    }

    /// [`fetch`](Self::fetch) with more arguments for the client.
    ///
    /// # Errors
    /// As `fetch`.
    pub fn fetch_with(&self, from: &str, url: &str, count: usize, more: &[&str]) -> Result<Vec<Reply>> {
        let count = count.to_string();
        let mut words = vec!["get", url, "--count", &count];
        words.extend(more);
        self.replies(from, &words)
    }

    /// Sends UDP datagrams, each from a new port, and returns what came of each.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn datagrams(&self, from: &str, target: &str, count: usize) -> Result<Vec<Reply>> {
        self.replies(from, &["udp", target, "--count", &count.to_string()])
    }

    /// Tries to connect once and tells how that went.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn connect(&self, from: &str, target: &str) -> Result<Reply> {
        self.replies(from, &["connect", target])?
            .into_iter()
            .next()
            .context("the client said nothing")
    }

    /// Runs the test server's client and returns its output; a failure of what it was asked to do is an
    /// error.
    ///
    /// # Errors
    /// When it cannot run, or says that something went wrong.
    pub fn testbed(&self, from: &str, words: &[&str]) -> Result<String> {
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        self.run(from, std::iter::once(program).chain(words.iter().copied()))
    }

    fn replies(&self, from: &str, words: &[&str]) -> Result<Vec<Reply>> {
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        let mut client = self.command(from, std::iter::once(program).chain(words.iter().copied()))?;
        let output = output(&mut client)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let replies: Vec<Reply> = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("the client said `{line}`")))
            .collect::<Result<_>>()?;
        if replies.is_empty() {
            bail!(
                "the client on {from} sent nothing ({}): {}",
                output.status,
                said(&output)
            );
        }
        Ok(replies)
    }
}

/// How many replies each task gave; failures count under what went wrong.
#[must_use]
pub fn spread(replies: &[Reply]) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for reply in replies {
        let name = if reply.task.is_empty() {
            format!("[{} {}]", reply.outcome, reply.error)
        } else {
            reply.task.clone()
        };
        *spread.entry(name).or_insert(0) += 1;
    }
    spread
}

/// The address without its port.
#[must_use]
pub fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_counts_replies_by_task_and_failures_by_reason() {
        let reply = |task: &str, outcome: &str| Reply {
            task: task.into(),
            outcome: outcome.into(),
            ..Reply::default()
        };
        let replies = [
            reply("web.1", "answered"),
            reply("web.2", "answered"),
            reply("web.1", "answered"),
            reply("", "refused"),
        ];
        let spread = spread(&replies);
        assert_eq!(spread.get("web.1"), Some(&2));
        assert_eq!(spread.get("[refused ]"), Some(&1));
    }
}
