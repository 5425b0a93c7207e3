//! Expectations of replies that several stories share.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use xtask::lab::{
    Lab, Reply, ServiceTask,
    traffic::{host, spread},
};

/// Every reply came from one of these tasks, and each of them replied.
pub(crate) fn expect_all_of(replies: &[Reply], tasks: &BTreeSet<String>) -> Result<()> {
    let spread = spread(replies);
    let answered: BTreeSet<String> = spread.keys().cloned().collect();
    ensure!(
        &answered == tasks,
        "{tasks:?} should answer, and the answers were {spread:?}"
    );
    Ok(())
}

/// Ten requests over five replicas give each exactly two.
pub(crate) fn expect_rotation(replies: &[Reply], replicas: usize) -> Result<()> {
    let spread = spread(replies);
    let share = replies.len() / replicas;
    ensure!(
        spread.len() == replicas && spread.values().all(|count| *count == share),
        "each of {replicas} replicas should answer {share} times, and the answers were {spread:?}"
    );
    Ok(())
}

/// Ten requests from somewhere to a URL are spread evenly over five replicas, at the third attempt at the
/// latest. A replica may not have finished with an earlier connection from the client's port. Then it asks
/// (RFC 5961, a challenge ACK), the client resets that connection and sends its SYN again, which takes
/// another turn.
pub(crate) fn expect_requests_in_rotation(lab: &Lab, from: &str, url: &str) -> Result<()> {
    in_rotation(|| lab.fetch(from, url, 10))
        .map(drop)
        .with_context(|| format!("from {from} to {url}"))
}

/// The replies to ten requests that are spread evenly over five replicas, at the third attempt at the
/// latest: a client's port may be taken by an earlier connection or flow, as [`expect_requests_in_rotation`]
/// explains.
pub(crate) fn in_rotation(send: impl Fn() -> Result<Vec<Reply>>) -> Result<Vec<Reply>> {
    let attempt = || {
        let replies = send()?;
        expect_rotation(&replies, 5)?;
        Ok(replies)
    };
    attempt().or_else(|_| attempt()).or_else(|_| attempt())
}

/// Every request was answered.
pub(crate) fn expect_answers(replies: &[Reply]) -> Result<()> {
    match replies
        .iter()
        .enumerate()
        .find(|(_, reply)| reply.outcome != "answered")
    {
        None => Ok(()),
        Some((index, reply)) => bail!(
            "request {} of {}: {} {}",
            index + 1,
            replies.len(),
            reply.outcome,
            reply.error
        ),
    }
}

/// The replicas saw the client as the client sees itself.
pub(crate) fn expect_client_address(replies: &[Reply], client: &str) -> Result<()> {
    expect_answers(replies)?;
    for reply in replies {
        ensure!(
            host(&reply.peer) == client,
            "{} saw {} and not {client}",
            reply.task,
            reply.peer
        );
        ensure!(
            reply.peer == reply.local,
            "{} saw {}, the client is {}",
            reply.task,
            reply.peer,
            reply.local
        );
    }
    Ok(())
}

/// Each replica saw what `expected` says for the node that it runs on.
pub(crate) fn expect_peers(
    tasks: &[ServiceTask],
    replies: &[Reply],
    expected: impl Fn(&str) -> Result<String>,
) -> Result<()> {
    for reply in replies {
        let task = tasks.iter().find(|task| task.name == reply.task);
        let expected = expected(&task.context("an unknown task")?.node)?;
        ensure!(
            host(&reply.peer) == expected,
            "{} saw {} and not {expected}",
            reply.task,
            reply.peer
        );
    }
    Ok(())
}
