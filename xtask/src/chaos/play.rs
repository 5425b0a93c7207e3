//! What happens in the scenarios. Depends on `fixture` and `lab`.

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::fixture::{REPLICAS, SERVICE, Scene, UPDATE};
use crate::{
    command::command,
    lab::{agent::metric_sum, wait_until},
};

/// Where managers' agents serve snapshots, and their engines the Swarm.
const FEED_PORT: u16 = 9468;
const SWARM_PORT: u16 = 2377;

pub(super) fn cable(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    scene.event();
    lab.cut_off("node3")?;
    let out = scene.until_out("node3", &["node1", "node2"]);
    scene.lasts(20, 5);
    scene.event();
    lab.reconnect("node3")?;
    out?;
    // Swarm has moved its tasks meanwhile, and moves none back: the node itself must answer for all.
    scene.until_back()
}

pub(super) fn container(scene: &Scene<'_>) -> Result<()> {
    scene.kill_replica("node3")?;
    scene.lab().wait_for_tasks(SERVICE, REPLICAS).map(drop)?;
    scene.until_all_known()
}

pub(super) fn hung(scene: &Scene<'_>) -> Result<()> {
    let id = scene.container_on("node3")?;
    scene.event();
    scene.accepts_nothing("node3", &id, true)?;
    scene.lasts(15, 5);
    scene.accepts_nothing("node3", &id, false)?;
    thread::sleep(Duration::from_secs(2));
    scene.until_all_answer()
}

pub(super) fn all(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    let mut replicas = Vec::new();
    for node in lab.nodes() {
        let ids = scene.containers_on(node)?;
        replicas.extend(ids.into_iter().map(|id| (node, id)));
    }
    scene.event();
    for (node, id) in &replicas {
        scene.accepts_nothing(node, id, true)?;
    }
    scene.lasts(5, 3);
    scene.event();
    for (node, id) in &replicas {
        scene.accepts_nothing(node, id, false)?;
    }
    scene.lasts(7, 7);
    scene.until_all_answer()
}

pub(super) fn partition(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    // On the wire. The client reaches both halves.
    let table = "table bridge partition {\n\
                 chain forward { type filter hook forward priority 0;\n\
                 iifname \"node1\" oifname { \"node2\", \"node3\" } drop;\n\
                 iifname { \"node2\", \"node3\" } oifname \"node1\" drop; }\n}\n";
    scene.event();
    lab.run_on_the_wire(&["nft", "-f", "-"], table)?;
    thread::sleep(Duration::from_secs(30));
    scene.event();
    lab.run_on_the_wire(&["nft", "delete", "table", "bridge", "partition"], "")?;
    let back = scene.until_back();
    // Swarm has replaced what it did not reach, and ends what it has replaced.
    lab.wait_for_tasks(SERVICE, REPLICAS)?;
    scene.until_all_known()?;
    back
}

pub(super) fn manager(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    lab.kill_agent("node1")?;
    scene.event();
    lab.scale(SERVICE, REPLICAS - 1)?;
    lab.wait_for_tasks(SERVICE, REPLICAS - 1)?;
    // It has got its stop signal, and its grace has passed.
    thread::sleep(Duration::from_secs(6));
    scene.event();
    lab.scale(SERVICE, REPLICAS)?;
    lab.wait_for_tasks(SERVICE, REPLICAS)?;
    thread::sleep(Duration::from_secs(2));
    lab.start_agent("node1", scene.agent_arguments())?;
    scene.until_all_known()
}

/// Processes that do nothing, as fast as they can.
struct Burners(Vec<Child>);

impl Burners {
    /// Two for each processor, so that what else wants one has to wait.
    fn start() -> Result<Self> {
        let mut burners = Self(Vec::new());
        for _ in 0..2 * thread::available_parallelism()?.get() {
            let burner = command(["sh", "-c", "while :; do :; done"]).spawn();
            burners.0.push(burner.context("could not start a busy process")?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            // It is this process's own child, so at worst it has ended already.
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

pub(super) fn busy(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    let _burners = Burners::start()?;
    scene.event();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(600) {
        thread::sleep(Duration::from_secs(1));
        for node in lab.nodes() {
            let silent = metric_sum(&lab.metrics(node)?, "mesh_peer_silent", &[]);
            ensure!(
                silent < 1.0,
                "after {} s, {node} takes {silent} nodes for silent that are not",
                begin.elapsed().as_secs()
            );
        }
    }
    Ok(())
}

pub(super) fn quorum(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    // On the wire. First node4 can follow no other manager; then that manager does not hear of the others'
    // Swarm any more, but node4 may choose.
    let block = |one: &str, others: &str, port: u16| {
        let table = format!(
            "table bridge quorum {{\n\
             chain forward {{ type filter hook forward priority 0;\n\
             iifname \"{one}\" oifname {{ {others} }} tcp dport {port} drop;\n\
             iifname {{ {others} }} oifname \"{one}\" tcp dport {port} drop;\n\
             iifname \"{one}\" oifname {{ {others} }} tcp sport {port} drop;\n\
             iifname {{ {others} }} oifname \"{one}\" tcp sport {port} drop; }}\n}}\n"
        );
        lab.run_on_the_wire(&["nft", "-f", "-"], &table)
    };
    let unblock = || lab.run_on_the_wire(&["nft", "delete", "table", "bridge", "quorum"], "");
    block("node4", "\"node1\", \"node2\"", FEED_PORT)?;
    let followed = lab.address("node3")?;
    wait_until("node4 to follow node3", Duration::from_secs(30), || {
        let status = lab.meshctl("node4", &["status", "--format", "json"])?;
        let status: Value = serde_json::from_str(&status).context("no JSON")?;
        let origin = &status["model"]["origin"];
        ensure!(
            origin.as_str().is_some_and(|origin| origin.contains(&followed)),
            "it follows {origin}"
        );
        Ok(())
    })?;
    unblock()?;
    block("node3", "\"node1\", \"node2\"", SWARM_PORT)?;
    scene.event();
    let replaced = (|| {
        lab.docker("node1", UPDATE)?;
        lab.wait_for_tasks(SERVICE, REPLICAS)?;
        scene.until_known(&["node1", "node2", "node4"])
    })();
    unblock()?;
    replaced?;
    scene.until_all_known()
}

pub(super) fn worker(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    lab.kill_agent("node3")?;
    scene.event();
    let availability = |value| lab.docker("node1", ["node", "update", "--availability", value, "node3"]);
    availability("drain")?;
    lab.wait_for_tasks(SERVICE, REPLICAS)?;
    thread::sleep(Duration::from_secs(2));
    // Swarm places new tasks on the node that has the fewest.
    availability("active")?;
    lab.scale(SERVICE, REPLICAS + 2)?;
    lab.wait_for_tasks(SERVICE, REPLICAS + 2)?;
    thread::sleep(Duration::from_secs(2));
    lab.scale(SERVICE, REPLICAS)?;
    lab.wait_for_tasks(SERVICE, REPLICAS)?;
    thread::sleep(Duration::from_secs(2));
    lab.start_agent("node3", scene.agent_arguments())?;
    scene.until_all_known()
}

pub(super) fn replaced(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    lab.kill_agent("node3")?;
    scene.event();
    lab.docker("node1", UPDATE)?;
    lab.wait_for_tasks(SERVICE, REPLICAS)?;
    thread::sleep(Duration::from_secs(2));
    for node in ["node1", "node2"] {
        wait_until(
            "the status to name the dead agent",
            Duration::from_secs(10),
            || {
                let status = lab.meshctl(node, &["status"])?;
                ensure!(
                    status.contains("agent of node3 not connected"),
                    "{node}: {status}"
                );
                Ok(())
            },
        )?;
    }
    lab.start_agent("node3", scene.agent_arguments())?;
    scene.until_all_known()
}

pub(super) fn unannounced(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    lab.kill_agent("node3")?;
    for node in ["node1", "node2"] {
        scene.event();
        lab.kill_agent(node)?;
        lab.start_agent(node, scene.agent_arguments())?;
        // For so long at most it waits for announcements, of which node3 makes none; then it plans.
        thread::sleep(Duration::from_secs(4));
    }
    scene.until_known(&["node1", "node2"])?;
    lab.start_agent("node3", scene.agent_arguments())?;
    scene.until_all_known()
}

pub(super) fn restart(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    for node in lab.nodes() {
        let status = lab.stop_agent(node)?.context("its exit status is not known")?;
        ensure!(status.success(), "the agent of {node} ended with {status}");
        thread::sleep(Duration::from_secs(1));
        lab.start_agent(node, scene.agent_arguments())?;
        thread::sleep(Duration::from_secs(1));
    }
    scene.until_all_known()
}

pub(super) fn upgrade(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    for node in lab.nodes() {
        scene.event();
        let status = lab.stop_agent(node)?.context("its exit status is not known")?;
        ensure!(status.success(), "the agent of {node} ended with {status}");
        lab.start_agent(node, scene.agent_arguments())?;
        // Releases are mixed for a while, in each proportion.
        thread::sleep(Duration::from_secs(5));
        scene.until_all_known()?;
    }
    scene.until_all_answer()
}

pub(super) fn firewall(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    // On the wire, as between two networks: the nodes themselves see nothing of it.
    let table = "table bridge firewall {\n\
                 chain forward { type filter hook forward priority 0;\n\
                 iifname { \"node1\", \"node2\" } oifname { \"node1\", \"node2\" } udp dport 6081 drop; }\n}\n";
    scene.event();
    lab.run_on_the_wire(&["nft", "-f", "-"], table)?;
    scene.lasts(10, 4);
    scene.event();
    lab.run_on_the_wire(&["nft", "delete", "table", "bridge", "firewall"], "")?;
    wait_until("all to be as before", Duration::from_secs(10), || {
        scene.until_all_answer()
    })
}
