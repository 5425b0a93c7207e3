//! Which nodes' agents a command asks: this machine's, another one's, or all.

use std::process::ExitCode;

use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::print::{Format, harmless, print};
use crate::admin::{Client, ClientError};

/// How many agents are asked at a time.
const AT_A_TIME: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Ask the agent of this node, by host name or id (on a manager)
    #[arg(long, value_name = "NODE", conflicts_with = "all_nodes")]
    node: Option<String>,
    /// Ask the agents of all nodes (on a manager); exits with 1 if one does not answer
    #[arg(long)]
    all_nodes: bool,
}

/// What the agents of all nodes answered.
#[derive(Debug, Serialize)]
pub(super) struct OfAll<T> {
    /// By host name.
    pub(super) nodes: Vec<T>,
    /// The nodes whose agents did not answer.
    pub(super) failed: Vec<Failed>,
}

/// A node whose agent did not answer.
#[derive(Debug, Serialize)]
pub(super) struct Failed {
    /// Its host name.
    pub(super) node: String,
    /// Why.
    pub(super) error: String,
}

impl Nodes {
    /// Whether all are asked.
    pub(super) fn are_all(&self) -> bool {
        self.all_nodes
    }

    /// The client of the one agent that is asked, if it is one.
    pub(super) fn one(&self, client: &Client) -> Client {
        match &self.node {
            Some(node) => client.on(node),
            None => client.clone(),
        }
    }

    /// The agents that are asked, by their host names.
    pub(super) async fn each(&self, client: &Client) -> Result<Vec<(String, Client)>, ClientError> {
        if self.all_nodes {
            return all(client).await;
        }
        let one = self.one(client);
        let hostname = one.status().await?.hostname;
        Ok(vec![(hostname, one)])
    }

    /// Asks, and prints the answers.
    pub(super) async fn show<T: Serialize>(
        &self,
        client: &Client,
        format: Format,
        ask: impl AsyncFn(&Client) -> Result<T, ClientError>,
        table: impl Fn(&[T]) -> String,
    ) -> anyhow::Result<ExitCode> {
        if !self.all_nodes {
            let answer = ask(&self.one(client)).await?;
            print(format, &answer, |answer| table(std::slice::from_ref(answer)))?;
            return Ok(ExitCode::SUCCESS);
        }
        let answers = of_all(client, ask).await?;
        print(format, &answers, |answers| table(&answers.nodes))?;
        Ok(answers.report())
    }
}

impl<T> OfAll<T> {
    /// Reports which nodes did not answer; returns the exit code that follows.
    fn report(&self) -> ExitCode {
        for failed in &self.failed {
            eprintln!("meshctl: {}: {}", harmless(&failed.node), harmless(&failed.error));
        }
        self.exit_code()
    }

    /// Failure if a node did not answer.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// The agents of all nodes, by their host names.
async fn all(client: &Client) -> Result<Vec<(String, Client)>, ClientError> {
    let status = client.status().await?;
    let others = status
        .peers
        .into_iter()
        .map(|peer| (peer.hostname, client.on(&peer.node)));
    let mut nodes: Vec<(String, Client)> = others.chain([(status.hostname, client.clone())]).collect();
    nodes.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(nodes)
}

/// Asks the agents of all nodes.
pub(super) async fn of_all<T>(
    client: &Client,
    ask: impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<OfAll<T>, ClientError> {
    let asked = all(client).await?.into_iter().map(|(hostname, client)| {
        let ask = &ask;
        async move { (hostname, ask(&client).await) }
    });
    let answered: Vec<_> = stream::iter(asked).buffered(AT_A_TIME).collect().await;
    let mut all = OfAll {
        nodes: Vec::new(),
        failed: Vec::new(),
    };
    for (hostname, answer) in answered {
        match answer {
            Ok(answer) => all.nodes.push(answer),
            Err(error) => all.failed.push(Failed {
                error: reason(&hostname, error),
                node: hostname,
            }),
        }
    }
    Ok(all)
}

/// Why a node did not answer, without what is the same for all of them.
fn reason(hostname: &str, error: ClientError) -> String {
    match error {
        ClientError::Agent { message, .. } => {
            let rest = message
                .strip_prefix(hostname)
                .and_then(|rest| rest.strip_prefix(": "));
            rest.unwrap_or(&message).to_owned()
        }
        error => mesh_support::error_chain(&error),
    }
}
