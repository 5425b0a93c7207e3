//! Stories of changes: scaling, removal, and agents and engines that stop and start again.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::{
    lab::{Reply, space::NODE_CGROUP, traffic::spread, wait_until},
    paths,
};

use crate::{
    expect::{expect_all_of, expect_answers, expect_rotation},
    fixture::{Fixture, HTTP, SOON, UDP},
    group::Story,
    load::{AFTERWARDS, KEPT, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    ("scaling_is_followed_within_a_second", scaling),
    ("scaling_down_loses_no_request", scaling_down_under_traffic),
    ("labels_say_how_connections_are_spread", labels),
    (
        "ports_that_the_node_needs_are_left_to_it_or_reported",
        taken_ports,
    ),
    ("a_removed_service_is_refused_within_a_second", removal),
    ("a_stopped_agent_leaves_nothing_behind", nothing_left),
    ("a_restarted_agent_loses_nothing_and_is_cleaned_away", kept),
    ("a_workers_agent_may_restart_or_crash", worker_restart),
    ("the_managers_agent_may_restart", manager_restart),
    ("dockerd_may_restart", engine_restart),
];

fn scaling(fixture: &Fixture) -> Result<()> {
    for replicas in [8, 2, 0, 3] {
        let before = fixture.names("web")?;
        fixture.lab.scale("web", replicas)?;
        if replicas < before.len() {
            // Tasks leave the list of those desired to run at once: that moment counts.
            wait_until("the tasks to be taken out", Duration::from_secs(10), || {
                let left = fixture.lab.running_tasks("web")?.len();
                ensure!(left == replicas, "{left} tasks are desired to run");
                Ok(())
            })?;
        } else {
            fixture.lab.wait_for_tasks("web", replicas)?;
        }
        if replicas == 0 {
            for node in fixture.lab.nodes() {
                until_refused(fixture, node).context("scaled to none")?;
            }
            continue;
        }
        let tasks = fixture.names("web")?;
        for node in fixture.lab.nodes() {
            // The last node has had more time; each must follow within a second.
            let url = fixture.url(node, HTTP)?;
            let count = tasks.len() * 2;
            wait_until(&format!("{node} to follow to {replicas}"), SOON, || {
                expect_all_of(
                    &fixture
                        .lab
                        .fetch_with("client", &url, count, &["--timeout", "500"])?,
                    &tasks,
                )
            })?;
            // And it stays so: nothing goes to a removed task.
            expect_all_of(&fixture.lab.fetch("client", &url, count * 2)?, &tasks)
                .with_context(|| node.to_owned())?;
        }
    }
    Ok(())
}

fn scaling_down_under_traffic(fixture: &Fixture) -> Result<()> {
    let url = fixture.url("node1", HTTP)?;
    let replies = during(fixture, &url, 400, || {
        thread::sleep(Duration::from_millis(300));
        fixture.lab.scale("web", 2)?;
        wait_until("two tasks", Duration::from_secs(10), || {
            ensure!(fixture.lab.running_tasks("web")?.len() == 2, "not yet");
            Ok(())
        })
    })?;
    expect_answers(&replies).context("while five replicas became two")
}

fn labels(fixture: &Fixture) -> Result<()> {
    let service = |change: &[&str]| -> Result<()> {
        // Labels of the service only: its tasks keep running.
        let arguments = [&["service", "update", "--detach"], change, &["web"]].concat();
        fixture.lab.docker("node1", arguments).map(drop)
    };
    let node = |change: [&str; 2]| {
        fixture
            .lab
            .docker("node1", ["node", "update", change[0], change[1], "node2"])
            .map(drop)
    };
    let outcome = (|| {
        service(&["--label-add", "mesh.scheduler=wrr"])?;
        node(["--label-add", "mesh.weight=3"])?;
        let weights: BTreeMap<String, usize> = fixture
            .lab
            .running_tasks("web")?
            .into_iter()
            .map(|task| (task.name, if task.node == "node2" { 3 } else { 1 }))
            .collect();
        let total: usize = weights.values().sum();
        for name in fixture.lab.nodes() {
            let url = fixture.url(name, HTTP)?;
            wait_until(&format!("{name} to go by weights"), SOON, || {
                let spread = spread(&fixture.lab.fetch("client", &url, total)?);
                ensure!(spread == weights, "{weights:?} expected, {spread:?} seen");
                Ok(())
            })?;
        }
        service(&["--label-add", "mesh.affinity=60"])?;
        wait_until("one replica for one client, whichever node it asks", SOON, || {
            let mut homes = BTreeSet::new();
            for name in fixture.lab.nodes() {
                let url = fixture.url(name, HTTP)?;
                homes.extend(spread(&fixture.lab.fetch("client", &url, 10)?).into_keys());
            }
            ensure!(homes.len() == 1, "{homes:?} answered");
            Ok(())
        })
    })();
    service(&["--label-rm", "mesh.scheduler", "--label-rm", "mesh.affinity"])?;
    node(["--label-rm", "mesh.weight"])?;
    outcome?;
    let url = fixture.url("node1", HTTP)?;
    wait_until("rotation again", SOON, || {
        expect_rotation(&fixture.lab.fetch("client", &url, 10)?, 5)
    })
}

/// A service publishes the port of the mesh's feed, and one on which a process of a worker listens.
fn taken_ports(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    // In a cgroup of its own, as services of the host are.
    let cgroup = format!("{NODE_CGROUP}/listener");
    let listen = format!(
        "mkdir -p {cgroup}; echo $$ > {cgroup}/cgroup.procs; busybox nc -l -p 2222 >/dev/null 2>&1 </dev/null & echo $!"
    );
    let listener = fixture.lab.run(node, ["sh", "-c", &listen])?;
    fixture
        .lab
        .create_service("taken", 0, &["9468:80", "2222:80"], &[])?;
    let reported = wait_until("the worker to report both", Duration::from_secs(5), || {
        let status = fixture.lab.meshctl(node, &["status"])?;
        let left = "taken (tcp/9468) is left to Docker's own mesh: the port is that of the mesh's feed";
        let occupied = format!("a process of /listener on {node} serves tcp/2222 as well");
        for expected in [left, &occupied] {
            ensure!(status.contains(expected), "{status}");
        }
        // Docker listens on the port as well, since it is published.
        ensure!(
            !status.contains("dockerd") && !status.contains("docker-proxy"),
            "{status}"
        );
        let metrics = fixture.lab.metrics(node)?;
        for (name, port) in [
            ("mesh_service_refused", 9468),
            ("mesh_published_port_in_use", 2222),
        ] {
            let port = format!("port=\"{port}\"");
            let is_set = |line: &str| line.starts_with(name) && line.contains(&port) && line.ends_with(" 1");
            ensure!(metrics.lines().any(is_set), "{name} of {port} is not 1");
        }
        Ok(())
    });
    // Workers go on to learn of changes from the manager.
    let feed = reported.and_then(|()| {
        fixture.lab.scale("web", 4)?;
        fixture.lab.wait_for_tasks("web", 4)?;
        fixture.until_all_know("web", SOON)
    });
    fixture.lab.docker("node1", ["service", "rm", "taken"])?;
    fixture.lab.run(node, ["sh", "-c", &format!("kill {listener}")])?;
    feed
}

fn removal(fixture: &Fixture) -> Result<()> {
    fixture.lab.docker("node1", ["service", "rm", "web"])?;
    for node in fixture.lab.nodes() {
        until_refused(fixture, node).context("service removed")?;
    }
    // The next story's service of this name must not meet this one's containers.
    fixture.lab.remove_service("web")
}

fn until_refused(fixture: &Fixture, node: &str) -> Result<()> {
    let target = fixture.at(node, HTTP)?;
    for (from, target) in [("client", target), (node, format!("127.0.0.1:{HTTP}"))] {
        wait_until(&format!("{node} to refuse connections from {from}"), SOON, || {
            let reply = fixture.lab.connect(from, &target)?;
            ensure!(
                reply.outcome == "refused",
                "{}: {} {}",
                target,
                reply.outcome,
                reply.error
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn nothing_left(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    fixture.lab.stop_agent(node)?;
    let mut before = String::new();
    // The kernel takes a program off after its link's last pin is gone, in its own time.
    wait_until(
        "the kernel to take the programs off",
        Duration::from_secs(5),
        || {
            before = fixture.network(node)?;
            ensure!(!before.contains("mesh_"), "there are some:\n{before}");
            Ok(())
        },
    )?;
    fixture.lab.start_agent(node, fixture.arguments)?;
    fixture.until_all_know("web", Duration::from_secs(15))?;
    let objects = bpf_objects(fixture, node)?;
    ensure!(
        !objects.is_empty(),
        "a running agent holds no BPF object that bpftool sees"
    );
    let status = fixture
        .lab
        .stop_agent(node)?
        .context("the agent's exit status is not known")?;
    ensure!(status.success(), "on SIGTERM the agent ended with {status}");
    wait_until(
        "the kernel to free what the agent loaded",
        Duration::from_secs(5),
        || {
            let left: BTreeSet<_> = all_bpf_objects(fixture, node)?
                .intersection(&objects)
                .cloned()
                .collect();
            ensure!(left.is_empty(), "left are {left:?}");
            Ok(())
        },
    )?;
    let after = fixture.network(node)?;
    ensure!(
        before == after,
        "the node's network was\n{before}\nand is\n{after}"
    );
    fixture.no_pins_left(node)
}

/// The BPF objects of the agent on a node: what its file descriptors hold, and its programs' maps.
fn bpf_objects(fixture: &Fixture, node: &str) -> Result<BTreeSet<(String, u64)>> {
    let script = "cat /proc/$(cat /run/mesh-agent.pid)/fdinfo/* 2>/dev/null | grep -E '^(prog_id|map_id|link_id):'; true";
    let held = fixture.lab.run(node, ["sh", "-c", script])?;
    let mut objects = BTreeSet::new();
    for line in held.lines() {
        let (kind, id) = line.split_once(':').context("fdinfo has no colon")?;
        let id = id.trim().parse().with_context(|| format!("`{line}` has no id"))?;
        objects.insert((kind.trim_end_matches("_id").to_owned(), id));
    }
    Ok(objects)
}

/// Every BPF object in the kernel.
fn all_bpf_objects(fixture: &Fixture, node: &str) -> Result<BTreeSet<(String, u64)>> {
    let mut objects = BTreeSet::new();
    for kind in ["prog", "map", "link"] {
        let text = fixture.lab.run(node, ["bpftool", "--json", kind, "show"])?;
        let list: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("bpftool {kind} printed {text}"))?;
        objects.extend(
            list.iter()
                .filter_map(|one| Some((kind.to_owned(), one.get("id")?.as_u64()?))),
        );
    }
    Ok(objects)
}

fn kept(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    fixture.lab.stop_agent(node)?;
    let keep = [fixture.arguments, &["--on-stop", "keep"]].concat();
    fixture.lab.start_agent(node, &keep)?;
    fixture.until_all_know("web", Duration::from_secs(15))?;
    // New requests through every node, and connections that stay open, while the agent is away and returns.
    let report = under_load(fixture, &fixture.lab.nodes(), 5, KEPT, || {
        thread::sleep(AFTERWARDS);
        fixture.lab.stop_agent(node)?;
        thread::sleep(AFTERWARDS);
        fixture.lab.start_agent(node, &keep)
    })?;
    expect_no_failures(&report).context("while the agent was restarted")?;
    expect_all_of(
        &fixture
            .lab
            .fetch(node, &format!("http://localhost:{HTTP}/"), 10)?,
        &fixture.names("web")?,
    )?;
    // While an agent runs, nothing is cleaned.
    let agent = paths::program("mesh-agent");
    let agent = agent.to_str().context("the target folder's path is not UTF-8")?;
    let refused = fixture
        .lab
        .run(node, [agent, "clean"])
        .err()
        .map(|error| format!("{error:#}"));
    ensure!(
        refused
            .as_ref()
            .is_some_and(|text| text.contains("another agent is running")),
        "`mesh-agent clean` beside an agent: {refused:?}"
    );
    fixture.lab.stop_agent(node)?;
    let cleaned = fixture.lab.run(node, [agent, "clean"])?;
    ensure!(
        cleaned.contains("eBPF") && cleaned.contains("mesh0"),
        "`mesh-agent clean` printed `{cleaned}`"
    );
    fixture.no_pins_left(node)
}

fn worker_restart(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    // Traffic through another node is not disturbed, not even to replicas on this one.
    let url = fixture.url("node1", HTTP)?;
    let replies = during(fixture, &url, 200, || {
        fixture.lab.kill_agent(node)?;
        fixture.lab.start_agent(node, fixture.arguments)
    })?;
    expect_answers(&replies).context("while the agent of node2 crashed and came back")?;
    fixture.lab.stop_agent(node)?;
    fixture.lab.scale("web", 7)?;
    fixture.lab.wait_for_tasks("web", 7)?;
    fixture.lab.start_agent(node, fixture.arguments)?;
    fixture
        .until_all_know("web", Duration::from_secs(10))
        .context("scaled while the agent of node2 was stopped")
}

fn manager_restart(fixture: &Fixture) -> Result<()> {
    let url = fixture.url("node2", HTTP)?;
    // node1 has replicas of its own, which need its agent: a crash keeps the data path.
    let replies = during(fixture, &url, 200, || {
        fixture.lab.kill_agent("node1")?;
        fixture.lab.start_agent("node1", fixture.arguments)
    })?;
    expect_answers(&replies).context("while the manager's agent crashed and came back")?;
    fixture.lab.scale("web", 6)?;
    fixture.lab.wait_for_tasks("web", 6)?;
    fixture
        .until_all_know("web", Duration::from_secs(10))
        .context("scaled after the manager's agent came back")
}

fn engine_restart(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    fixture.lab.stop_engine(node)?;
    // Swarm notices after a while and starts the node's tasks elsewhere.
    fixture.lab.start_engine(node)?;
    fixture.lab.wait_for_tasks("web", 5)?;
    fixture
        .until_all_know("web", Duration::from_secs(20))
        .context("after dockerd of node2 restarted")?;
    fixture.lab.stop_engine("node1")?;
    // Without its manager the cluster cannot change; what runs on the workers is still served there.
    let reply = fixture.lab.fetch("client", &fixture.url("node3", HTTP)?, 10)?;
    ensure!(
        spread(&reply).keys().any(|task| task.starts_with("web.")),
        "without the manager's engine node3 answers nothing: {:?}",
        spread(&reply)
    );
    fixture.lab.start_engine("node1")?;
    wait_until("Swarm to have its manager again", Duration::from_secs(30), || {
        fixture.lab.docker("node1", ["node", "ls"]).map(drop)
    })?;
    fixture.lab.wait_for_tasks("web", 5)?;
    fixture
        .until_all_know("web", Duration::from_secs(20))
        .context("after dockerd of node1 restarted")?;
    let udp = fixture.lab.datagrams("client", &fixture.at(node, UDP)?, 5)?;
    expect_answers(&udp).context("UDP after the restarts")
}

/// Sends a request every 10 ms while something happens; returns the reply to each.
fn during(
    fixture: &Fixture,
    url: &str,
    count: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Reply>> {
    thread::scope(|scope| {
        let requests = scope.spawn(|| fixture.lab.fetch_with("client", url, count, &["--pause", "10"]));
        let outcome = work();
        let Ok(replies) = requests.join() else {
            bail!("the thread that sent requests panicked")
        };
        outcome?;
        replies
    })
}
