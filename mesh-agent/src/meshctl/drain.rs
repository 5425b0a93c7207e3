//! `meshctl drain` and `undrain`.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use crate::admin::{
    Client,
    api::{DrainAnswer, Elsewhere},
};
use crate::model::{DrainRequest, DrainedReplica};

/// The agent counts connections about once a second.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct DrainArguments {
    /// A task (web.3, or its id), or a node's host name or id for all its replicas
    #[arg(value_name = "TASK|NODE")]
    target: String,
    /// Also drain the last replica of a service: its new connections are refused then
    #[arg(long)]
    force: bool,
    /// Do not wait until the open connections have ended
    #[arg(long, short)]
    detach: bool,
}

#[derive(Debug, Args)]
pub(super) struct UndrainArguments {
    /// A drained task, or a node's host name or id to end all its drains
    #[arg(value_name = "TASK|NODE")]
    target: String,
}

/// Drains, and counts the open connections down until none is left.
pub(super) async fn drain(client: &Client, arguments: DrainArguments) -> anyhow::Result<()> {
    let request = DrainRequest {
        target: arguments.target.clone(),
        undo: false,
        force: arguments.force,
    };
    let mut answer = client.drain(&request).await?;
    let mut printed = String::new();
    loop {
        let text = lines(&answer, &arguments.target);
        if text != printed {
            let mut output = io::stdout().lock();
            write!(output, "{text}")
                .and_then(|()| output.flush())
                .context("cannot write to standard output")?;
            printed = text;
        }
        if arguments.detach || !meant(&answer, &arguments.target).any(is_open) {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
        let node = answer
            .elsewhere
            .as_ref()
            .map(|elsewhere| elsewhere.node_id.as_str());
        answer = client.drained(node).await?;
    }
}

/// Ends a drain.
pub(super) async fn undrain(client: &Client, arguments: UndrainArguments) -> anyhow::Result<()> {
    let request = DrainRequest {
        target: arguments.target,
        undo: true,
        force: false,
    };
    let answer = client.drain(&request).await?;
    let node = node_name(answer.elsewhere.as_ref());
    let text = match (answer.report.node, answer.report.replicas.as_slice()) {
        (true, _) => format!("{node} is still drained"),
        (false, []) => format!("nothing is drained on {node}"),
        (false, left) => {
            let names: Vec<_> = left.iter().map(|replica| replica.task.as_str()).collect();
            format!("still drained on {node}: {}", names.join(", "))
        }
    };
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")
}

/// The replicas that a command is about: one task, or all of the node.
fn meant<'a>(answer: &'a DrainAnswer, target: &'a str) -> impl Iterator<Item = &'a DrainedReplica> {
    let replicas = answer.report.replicas.iter();
    replicas.filter(move |replica| answer.report.node || replica.task == target || replica.task_id == target)
}

fn node_name(elsewhere: Option<&Elsewhere>) -> &str {
    elsewhere.map_or("this node", |elsewhere| &elsewhere.hostname)
}

fn is_open(replica: &DrainedReplica) -> bool {
    replica.open.is_some_and(|open| open > 0)
}

fn lines(answer: &DrainAnswer, target: &str) -> String {
    let lines: String = meant(answer, target)
        .map(|replica| {
            let open = match replica.open {
                Some(0) => "drained, no open connections".to_owned(),
                Some(1) => "draining, 1 open connection".to_owned(),
                Some(open) => format!("draining, {open} open connections"),
                None => "draining; this data path does not count its open connections".to_owned(),
            };
            format!("{}: {open}\n", replica.task)
        })
        .collect();
    if lines.is_empty() {
        format!(
            "no replica of it is left on {}\n",
            node_name(answer.elsewhere.as_ref())
        )
    } else {
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DrainReport;

    #[test]
    fn only_the_replicas_that_the_command_is_about_are_shown_and_waited_for() {
        let replica = |task: &str, open| DrainedReplica {
            task: task.to_owned(),
            task_id: format!("id-{task}"),
            open,
        };
        let mut answer = DrainAnswer {
            version: 1,
            elsewhere: None,
            report: DrainReport {
                node: false,
                replicas: vec![
                    replica("web.1", Some(0)),
                    replica("web.2", Some(1)),
                    replica("web.3", None),
                ],
            },
        };
        assert_eq!(lines(&answer, "web.1"), "web.1: drained, no open connections\n");
        assert_eq!(lines(&answer, "id-web.2"), "web.2: draining, 1 open connection\n");
        assert!(!meant(&answer, "web.1").any(is_open));
        assert!(meant(&answer, "web.2").any(is_open));
        assert!(
            !meant(&answer, "web.3").any(is_open),
            "what is not counted is not waited for"
        );
        answer.report.node = true;
        assert_eq!(lines(&answer, "n1").lines().count(), 3);
        answer.report.replicas.clear();
        answer.elsewhere = Some(Elsewhere {
            node_id: "id2".to_owned(),
            hostname: "n2".to_owned(),
        });
        assert_eq!(lines(&answer, "n2"), "no replica of it is left on n2\n");
    }
}
