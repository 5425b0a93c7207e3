//! Traffic of the lab's nodes and client, by the test server's own client. Depends on `space`.

use std::{collections::BTreeMap, thread};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, de::DeserializeOwned};

use super::Lab;
use crate::{
    command::{output, output_text},
    paths,
};

/// The outcome of one request.
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

/// A constant load.
#[derive(Clone, Debug)]
pub struct Load {
    /// What is asked, in turn.
    pub urls: Vec<String>,
    /// New connections each second, in all.
    pub rate: u32,
    /// For so long at least, in seconds.
    pub seconds: u32,
    /// Connections that are kept, to the URLs in turn.
    pub kept: usize,
}

impl Lab {
    /// Sends `count` requests one after the other, each on a new connection, and returns the outcome
    /// of each, failures included.
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
        let mut arguments = vec!["get", url, "--count", &count];
        arguments.extend(more);
        self.replies(from, &arguments)
    }

    /// Sends UDP datagrams, each from a new port, and returns the outcome of each.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn datagrams(&self, from: &str, target: &str, count: usize) -> Result<Vec<Reply>> {
        self.replies(from, &["udp", target, "--count", &count.to_string()])
    }

    /// Tries to connect once and returns the outcome.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn connect(&self, from: &str, target: &str) -> Result<Reply> {
        self.replies(from, &["connect", target])?
            .into_iter()
            .next()
            .context("the client printed nothing")
    }

    /// Keeps up a load from a node during some work, and returns the client's report.
    ///
    /// # Errors
    /// When the work fails, or the client does, ends before the work or does not keep the rate.
    pub fn under_load<T: DeserializeOwned>(
        &self,
        from: &str,
        load: &Load,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        let busy = tempfile::NamedTempFile::new().context("no temporary file")?;
        let path = busy.path().to_str().map(str::to_owned);
        let path = path.context("the temporary folder's path is not UTF-8")?;
        let (rate, seconds, kept) = (
            load.rate.to_string(),
            load.seconds.to_string(),
            load.kept.to_string(),
        );
        let mut arguments = vec![
            "load",
            "--rate",
            &rate,
            "--duration",
            &seconds,
            "--keep-alive",
            &kept,
        ];
        arguments.extend(["--while", &path]);
        arguments.extend(load.urls.iter().map(String::as_str));
        let text = thread::scope(|scope| {
            let client = scope.spawn(|| self.testbed(from, &arguments));
            let outcome = work();
            let ended_before = client.is_finished();
            // Its file gone, the client ends: also where the work failed.
            let removed = busy.close();
            let Ok(text) = client.join() else {
                bail!("the thread of the load panicked")
            };
            outcome?;
            removed.context("could not end the load")?;
            let text = text?;
            ensure!(!ended_before, "the load ended before the work did: `{text}`");
            Ok(text)
        })?;
        let kept_up = |report: &Attempts| report.attempts >= u64::from(load.rate * load.seconds) * 9 / 10;
        let printed = || format!("the load printed `{text}`");
        ensure!(
            kept_up(&serde_json::from_str(&text).with_context(printed)?),
            "the rate was not kept: `{text}`"
        );
        serde_json::from_str(&text).with_context(printed)
    }

    /// Runs the test server's client and returns its output; a failure of what it was asked to do is an
    /// error.
    ///
    /// # Errors
    /// When it cannot run, or reports a failure.
    pub fn testbed(&self, from: &str, arguments: &[&str]) -> Result<String> {
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        self.run(from, std::iter::once(program).chain(arguments.iter().copied()))
    }

    /// Runs the client with arguments of its own, and returns the outcome of each request.
    ///
    /// # Errors
    /// When the client itself cannot run.
    pub fn replies(&self, from: &str, arguments: &[&str]) -> Result<Vec<Reply>> {
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        let mut client = self.command(from, std::iter::once(program).chain(arguments.iter().copied()))?;
        let output = output(&mut client)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let replies: Vec<Reply> = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("the client printed `{line}`")))
            .collect::<Result<_>>()?;
        if replies.is_empty() {
            bail!(
                "the client on {from} sent nothing ({}): {}",
                output.status,
                output_text(&output)
            );
        }
        Ok(replies)
    }
}

/// What of a load's report is checked here.
#[derive(Deserialize)]
struct Attempts {
    attempts: u64,
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
