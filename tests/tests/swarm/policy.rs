//! Stories of who may come in to a service, as its labels and a node's own rules say.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::load::Report;
use xtask::lab::{agent::metric_sum, wait::patience, wait_until};

use crate::{
    expect::expect_answers,
    fixture::{Fixture, HTTP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[
    (
        "labels_say_who_may_come_in_and_where_a_service_is_published",
        labels,
    ),
    ("a_nodes_own_rules_hold_for_every_service", own_rules),
    ("a_label_ends_connections_that_are_idle_for_too_long", idle),
];

/// For nodes with two cards, and a client in the networks of both.
pub(crate) const BY_INTERFACE: &[Story] =
    &[("a_service_is_published_on_one_of_two_interfaces", by_interface)];

const NODE: &str = "node1";
const OTHER: &str = "node2";
const LIMIT: Duration = Duration::from_secs(5);
/// The agent's configuration file in the story of a node's own rules. Each node has this folder for itself.
const FILE: &str = "/run/policy.toml";

fn labels(fixture: &Fixture) -> Result<()> {
    let client = fixture.lab.address("client")?;
    let other = fixture.lab.address(OTHER)?;
    for (label, shown) in [
        (format!("mesh.deny={client}"), format!("mesh.deny={client}/32")),
        (format!("mesh.allow={other}"), format!("mesh.allow={other}/32")),
    ] {
        let before = dropped(fixture, NODE, "source_denied")?;
        with_label(fixture, &label, || {
            until_all(fixture, "client", NODE, "timeout")?;
            until_all(fixture, OTHER, NODE, "answered")?;
            until_routes_say(fixture, NODE, &shown)?;
            ensure!(
                dropped(fixture, NODE, "source_denied")? > before,
                "nothing was counted"
            );
            Ok(())
        })
        .context(label)?;
        until_all(fixture, "client", NODE, "answered")?;
    }
    let before = dropped(fixture, OTHER, "source_rejected")?;
    let address = fixture.lab.address(NODE)?;
    with_label(fixture, &format!("mesh.publish-on={address}"), || {
        published_at_node1_only(fixture)
    })
    .context("published at one address")?;
    fixture
        .lab
        .docker(NODE, ["node", "update", "--label-add", "edge=true", NODE])?;
    let published = with_label(fixture, "mesh.publish-on=node.labels.edge==true", || {
        published_at_node1_only(fixture)
    });
    fixture
        .lab
        .docker(NODE, ["node", "update", "--label-rm", "edge", NODE])?;
    published.context("published on one node")?;
    ensure!(
        dropped(fixture, OTHER, "source_rejected")? > before,
        "what was refused was not counted"
    );
    until_all(fixture, "client", OTHER, "answered")?;
    with_label(fixture, "mesh.publish-on=eth0:7", || {
        wait_until("the label to be named", LIMIT * patience(), || {
            let status = fixture.lab.meshctl(OTHER, &["status"])?;
            ensure!(
                status.contains("label mesh.publish-on=eth0:7 of service web"),
                "{status}"
            );
            let counted = metric_sum(&fixture.lab.metrics(OTHER)?, "mesh_invalid_labels", &[]);
            ensure!(counted > 0.5, "the label is not counted");
            Ok(())
        })?;
        until_all(fixture, "client", OTHER, "answered")
    })
    .context("an invalid label")
}

fn published_at_node1_only(fixture: &Fixture) -> Result<()> {
    until_all(fixture, "client", OTHER, "refused")?;
    until_all(fixture, "client", NODE, "answered")?;
    until_routes_say(fixture, OTHER, "not published on this node")?;
    // The node's own processes come in.
    let url = format!("http://127.0.0.1:{HTTP}/");
    expect_answers(&fixture.lab.fetch(OTHER, &url, 2)?)
}

fn by_interface(fixture: &Fixture) -> Result<()> {
    let addresses = fixture.lab.addresses(NODE)?;
    let [first, second] = &addresses[..] else {
        bail!("{NODE} has other addresses than one for each card: {addresses:?}");
    };
    for (interface, open, closed) in [("eth0", first, second), ("eth1", second, first)] {
        with_label(fixture, &format!("mesh.publish-on={interface}"), || {
            until_all_at(fixture, "client", closed, "refused")?;
            until_all_at(fixture, "client", open, "answered")?;
            until_routes_say(fixture, NODE, &format!("do not come in by {interface} "))
        })?;
        until_all_at(fixture, "client", closed, "answered")?;
    }
    Ok(())
}

/// As an operator would: rules in the agent's configuration file, and SIGHUP.
fn own_rules(fixture: &Fixture) -> Result<()> {
    let client = fixture.lab.address("client")?;
    write_rules(fixture, &["allow 443/tcp", "deny any from 203.0.113.0/24"])?;
    fixture.lab.stop_agent(NODE)?;
    let arguments = [fixture.arguments, &["--config", FILE]].concat();
    fixture.lab.start_agent(NODE, &arguments)?;
    let outcome = rules_change(fixture, &client);
    // The next story finds the agent as the others are.
    fixture.lab.stop_agent(NODE)?;
    fixture.lab.start_agent(NODE, fixture.arguments)?;
    outcome
}

fn rules_change(fixture: &Fixture, client: &str) -> Result<()> {
    until_all(fixture, "client", NODE, "answered")?;
    let rule = format!("reject 9200/tcp from {client} on eth0");
    write_rules(fixture, &["allow 443/tcp", &rule])?;
    reload(fixture)?;
    until_all(fixture, "client", NODE, "refused")?;
    until_all(fixture, OTHER, NODE, "answered")?;
    until_routes_say(fixture, NODE, &rule)?;
    let status = fixture.lab.meshctl(NODE, &["status"])?;
    ensure!(status.contains(&format!("allow 443/tcp; {rule}")), "{status}");
    // A mistake changes nothing, and is named with its line.
    write_rules(fixture, &["allow any", "allow 80/sctp"])?;
    reload(fixture)?;
    wait_until("the mistake to be named", LIMIT * patience(), || {
        let log = fixture.lab.agent_log_tail(NODE, 50);
        ensure!(
            log.contains("policy.toml, line 3") && log.contains("80/sctp"),
            "{log}"
        );
        Ok(())
    })?;
    until_all(fixture, "client", NODE, "refused")?;
    let checked = fixture.lab.run(
        NODE,
        [
            "sh",
            "-c",
            &format!("{} run --check --config {FILE} 2>&1 || echo exit $?", program()?),
        ],
    )?;
    ensure!(
        checked.contains("line 3") && checked.ends_with("exit 1"),
        "{checked}"
    );
    write_rules(fixture, &[])?;
    reload(fixture)?;
    until_all(fixture, "client", NODE, "answered")
}

fn program() -> Result<String> {
    let program = xtask::paths::program("mesh-agent");
    Ok(program
        .to_str()
        .context("the program's path is not UTF-8")?
        .to_owned())
}

/// One rule a line, from the second line on.
fn write_rules(fixture: &Fixture, rules: &[&str]) -> Result<()> {
    let rules: String = rules.iter().map(|rule| format!("  \"{rule}\",\n")).collect();
    let text = format!("policy = [\n{rules}]");
    let script = format!("echo \"$1\" > {FILE}");
    fixture
        .lab
        .run(NODE, ["sh", "-euc", &script, "sh", &text])
        .map(drop)
}

fn reload(fixture: &Fixture) -> Result<()> {
    let script = "kill -HUP $(cat /run/mesh-agent.pid)";
    fixture.lab.run(NODE, ["sh", "-euc", script]).map(drop)
}

/// Connections that pause for longer than the label allows do not outlive it; without the label they do.
fn idle(fixture: &Fixture) -> Result<()> {
    with_label(fixture, "mesh.idle-timeout=1s", || {
        wait_until("idle connections to end", LIMIT * 3 * patience(), || {
            let report = pausing(fixture)?;
            ensure!(
                !report.kept.broken.is_empty(),
                "none of {} broke",
                report.kept.connections
            );
            Ok(())
        })
    })?;
    wait_until("idle connections to stay", LIMIT * 3 * patience(), || {
        let report = pausing(fixture)?;
        ensure!(report.kept.broken.is_empty(), "{:?}", report.kept.broken);
        Ok(())
    })
}

fn pausing(fixture: &Fixture) -> Result<Report> {
    let url = fixture.url(NODE, HTTP)?;
    let arguments = [
        "load",
        &url,
        "--rate",
        "1",
        "--duration",
        "4",
        "--keep-alive",
        "3",
        "--pause",
        "3500",
    ];
    let output = fixture.lab.testbed("client", &arguments)?;
    serde_json::from_str(&output).with_context(|| format!("the load printed {output}"))
}

/// Holds a label on the service while something happens.
fn with_label(fixture: &Fixture, label: &str, story: impl FnOnce() -> Result<()>) -> Result<()> {
    let name = label.split('=').next().unwrap_or_default();
    let update = |flag, value| {
        let command = ["service", "update", "--detach", flag, value, "web"];
        fixture.lab.docker(NODE, command).map(drop)
    };
    update("--label-add", label)?;
    let outcome = story();
    update("--label-rm", name)?;
    outcome
}

/// Waits until all of some requests to a node end in one way.
fn until_all(fixture: &Fixture, from: &str, node: &str, outcome: &str) -> Result<()> {
    until_all_at(fixture, from, &fixture.lab.address(node)?, outcome)
}

fn until_all_at(fixture: &Fixture, from: &str, address: &str, outcome: &str) -> Result<()> {
    let url = format!("http://{address}:{HTTP}/");
    let what = format!("requests of {from} to {address} to end as {outcome}");
    wait_until(&what, LIMIT * patience(), || {
        let replies = fixture.lab.fetch_with(from, &url, 3, &["--timeout", "300"])?;
        match replies.iter().find(|reply| reply.outcome != outcome) {
            None => Ok(()),
            Some(reply) => bail!("one ended as {}: {}", reply.outcome, reply.error),
        }
    })
}

fn until_routes_say(fixture: &Fixture, node: &str, text: &str) -> Result<()> {
    wait_until(
        &format!("routes on {node} to name {text}"),
        LIMIT * patience(),
        || {
            let routes = fixture.lab.meshctl(node, &["routes"])?;
            ensure!(routes.contains(text), "{routes}");
            Ok(())
        },
    )
}

fn dropped(fixture: &Fixture, node: &str, reason: &str) -> Result<f64> {
    fixture.lab.drops(node, &[&format!("reason=\"{reason}\"")])
}
