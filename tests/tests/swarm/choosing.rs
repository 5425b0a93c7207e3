//! Stories of which replica a new connection goes to, as a service's labels say, and for how long it stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use xtask::lab::{traffic::spread, wait::patience, wait_until};

use crate::{
    expect::{expect_answers, expect_rotation},
    fixture::{Fixture, HTTP, SOON},
    group::Story,
    load::{AFTERWARDS, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    ("weights_and_preference_follow_the_labels_of_a_service", shares),
    (
        "clients_stay_with_their_replica_when_a_service_is_scaled",
        affinity,
    ),
    ("a_new_replica_starts_slowly", slow_start),
    ("connections_that_a_drain_has_waited_for_are_reset", drain_timeout),
];

const MANAGER: &str = "node1";
const NODE: &str = "node2";
const LIMIT: Duration = Duration::from_secs(5);

fn shares(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    let labels = ["mesh.scheduler=wrr", "mesh.weights=node.hostname==node2:3"];
    with_labels(fixture, &labels, || {
        let weights: BTreeMap<String, usize> = (tasks.iter())
            .map(|task| (task.name.clone(), if task.node == NODE { 3 } else { 1 }))
            .collect();
        let total = weights.values().sum();
        for name in fixture.lab.nodes() {
            let url = fixture.url(name, HTTP)?;
            wait_until(&format!("{name} to go by weights"), LIMIT * patience(), || {
                let found = spread(&fixture.lab.fetch("client", &url, total)?);
                ensure!(found == weights, "{weights:?} expected, {found:?} seen");
                Ok(())
            })?;
        }
        Ok(())
    })
    .context("weights")?;
    with_labels(
        fixture,
        &["mesh.prefer-local=true", "mesh.scheduler=random"],
        || {
            let of = |node: &str| -> BTreeSet<String> {
                let there = tasks.iter().filter(|task| task.node == node);
                there.map(|task| task.name.clone()).collect()
            };
            let answering = |node: &str| -> Result<BTreeSet<String>> {
                let replies = fixture.lab.fetch("client", &fixture.url(node, HTTP)?, 30)?;
                expect_answers(&replies)?;
                Ok(spread(&replies).into_keys().collect())
            };
            for name in fixture.lab.nodes() {
                wait_until(&format!("{name} to prefer its own"), LIMIT * patience(), || {
                    let (own, found) = (of(name), answering(name)?);
                    ensure!(found == own, "it has {own:?}, and {found:?} answer");
                    Ok(())
                })?;
            }
            let routes = fixture.lab.meshctl(NODE, &["routes"])?;
            ensure!(routes.contains("own replicas are preferred"), "{routes}");
            fixture.lab.meshctl(NODE, &["drain", "--detach", NODE])?;
            let others = wait_until("others to stand in", LIMIT * patience(), || {
                let (own, found) = (of(NODE), answering(NODE)?);
                ensure!(found.is_disjoint(&own), "{own:?} drain, and {found:?} answer");
                Ok(())
            });
            fixture.lab.meshctl(NODE, &["undrain", NODE])?;
            others
        },
    )
    .context("preference")
}

/// Each machine is a client of its own.
fn affinity(fixture: &Fixture) -> Result<()> {
    let clients = ["client", "node2", "node3"];
    let url = fixture.url(MANAGER, HTTP)?;
    let home = |client: &str| -> Result<String> {
        let replies = fixture.lab.fetch(client, &url, 6)?;
        expect_answers(&replies)?;
        let found = spread(&replies);
        ensure!(found.len() == 1, "{client} reaches {found:?}");
        found.into_keys().next().context("no replica answered")
    };
    fixture.lab.scale("web", 3)?;
    fixture.lab.wait_for_tasks("web", 3)?;
    fixture.until_all_know("web", SOON * patience())?;
    with_labels(fixture, &["mesh.affinity=60"], || {
        // Clients are noted once what was begun without the label has opened.
        std::thread::sleep(Duration::from_millis(2500) * patience().min(4));
        let mut homes = BTreeMap::new();
        for client in clients {
            let home = wait_until("affinity", LIMIT * patience(), || home(client))?;
            homes.insert(client, home);
        }
        for replicas in [4, 6] {
            fixture.lab.scale("web", replicas)?;
            let tasks = fixture.lab.wait_for_tasks("web", replicas)?;
            for task in tasks {
                wait_until("node1 to have the new replicas", LIMIT * patience(), || {
                    let routes = fixture.lab.meshctl(MANAGER, &["routes"])?;
                    let mut rows = routes.lines();
                    ensure!(
                        rows.any(|row| row.contains(&task.name) && row.contains("active")),
                        "{routes}"
                    );
                    Ok(())
                })?;
            }
            for client in clients {
                let (before, now) = (&homes[client], home(client)?);
                ensure!(*before == now, "{client} has moved from {before} to {now}");
            }
        }
        Ok(())
    })
}

fn slow_start(fixture: &Fixture) -> Result<()> {
    let url = fixture.url(NODE, HTTP)?;
    let before = fixture.names("web")?;
    with_labels(fixture, &["mesh.slow-start=6s"], || {
        // The label must be there before the replica is.
        std::thread::sleep(AFTERWARDS);
        fixture.lab.scale("web", 6)?;
        wait_until("the new replica to be named", LIMIT * 2 * patience(), || {
            let routes = fixture.lab.meshctl(NODE, &["routes"])?;
            ensure!(routes.contains("of its share (mesh.slow-start)"), "{routes}");
            Ok(())
        })?;
        let found = spread(&fixture.lab.fetch("client", &url, 60)?);
        let new: usize = (found.iter())
            .filter(|(name, _)| !before.contains(*name))
            .map(|(_, count)| count)
            .sum();
        println!("    the new replica got {new} of the first 60 connections");
        ensure!(new <= 5, "a full share is 10: {found:?}");
        wait_until("its full share", Duration::from_secs(8) * patience(), || {
            let routes = fixture.lab.meshctl(NODE, &["routes"])?;
            ensure!(!routes.contains("mesh.slow-start"), "{routes}");
            expect_rotation(&fixture.lab.fetch("client", &url, 12)?, 6)
        })
    })
}

fn drain_timeout(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    let task = tasks.into_iter().find(|task| task.node == NODE);
    let task = task.with_context(|| format!("no replica runs on {NODE}"))?.name;
    with_labels(fixture, &["mesh.drain-timeout=2s"], || {
        let report = under_load(fixture, &fixture.lab.nodes(), 6, 30, || {
            std::thread::sleep(AFTERWARDS);
            fixture.lab.meshctl(MANAGER, &["drain", "--detach", &task])?;
            wait_until("the drain to end", LIMIT * 2 * patience(), || {
                let routes = fixture.lab.meshctl(MANAGER, &["routes"])?;
                ensure!(
                    routes.contains("drained for longer than mesh.drain-timeout"),
                    "{routes}"
                );
                Ok(())
            })
        });
        fixture.lab.meshctl(MANAGER, &["undrain", &task])?;
        let report = report?;
        ensure!(report.failures() == 0, "{} requests failed", report.failures());
        println!(
            "    {} of {} connections that stayed open were reset",
            report.kept.broken.len(),
            report.kept.connections
        );
        ensure!(!report.kept.broken.is_empty(), "none was reset");
        ensure!(
            report.kept.broken.len() < 30,
            "all were, not only those of {task}"
        );
        Ok(())
    })
}

/// Holds labels on the service while something happens.
fn with_labels(fixture: &Fixture, labels: &[&str], story: impl FnOnce() -> Result<()>) -> Result<()> {
    let update = |flag: &str, values: Vec<&str>| {
        let changes = values.into_iter().flat_map(|value| [flag, value]);
        let command = ["service", "update", "--detach"]
            .into_iter()
            .chain(changes)
            .chain(["web"]);
        fixture.lab.docker(MANAGER, command).map(drop)
    };
    update("--label-add", labels.to_vec())?;
    let outcome = story();
    let names = labels
        .iter()
        .map(|label| label.split('=').next().unwrap_or_default());
    update("--label-rm", names.collect())?;
    outcome
}
