//! The scenarios: what goes wrong, and what that may cost the clients. `web` has five replicas on three
//! nodes, of which `node1` manages. Depends on `fixture` and `outcome`.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    fixture::{Agents, REPLICAS, SERVICE, Scene, UPDATE},
    outcome::Requirement,
};
use crate::lab::wait_until;

/// One thing that goes wrong.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// What happens.
    pub(super) event: &'static str,
    pub(super) required: Requirement,
    /// The nodes that are asked.
    pub(super) entries: &'static [&'static str],
    /// The agents that run when it begins.
    pub(super) agents: Agents,
    pub(super) play: fn(&Scene<'_>) -> Result<()>,
}

const ALL: &[&str] = &["node1", "node2", "node3"];

/// What most of them require.
const NOTHING_LOST: Requirement = Requirement {
    text: "nothing lost",
    grace: Duration::ZERO,
    failures_per_entry: None,
    kept_may_break: false,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cable",
        event: "the cable of node3 is out for 20 s",
        required: Requirement {
            text: "no new connection lost later than 1 s after the cut; all as before within 2 s of the return",
            grace: Duration::from_secs(1),
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: &["node1", "node2"],
        agents: Agents::Current,
        play: cable,
    },
    Scenario {
        name: "container",
        event: "the process of a replica on node3 is killed (kill -9)",
        required: Requirement {
            text: "nothing lost later than 100 ms",
            grace: Duration::from_millis(100),
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        play: container,
    },
    Scenario {
        name: "hung",
        event: "a replica on node3 accepts nothing for 15 s",
        required: Requirement {
            text: "at most 3 unanswered opens for each entry node; back by itself",
            grace: Duration::from_secs(15),
            failures_per_entry: Some(3),
            kept_may_break: true,
        },
        entries: ALL,
        agents: Agents::Current,
        play: hung,
    },
    Scenario {
        name: "manager",
        event: "the agent of the only manager is killed, then a replica is removed and one added",
        required: Requirement {
            text: "no new connection lost, as the replicas' nodes have agents",
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        play: manager,
    },
    Scenario {
        name: "worker",
        event: "the agent of node3 is killed, and tasks move from its node and to it",
        required: Requirement {
            text: "no new connection lost through the nodes with an agent",
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: &["node1", "node2"],
        agents: Agents::Current,
        play: worker,
    },
    Scenario {
        name: "worker-entry",
        event: "the same, and node3 itself is asked",
        required: Requirement {
            text: "at most 3 opens lost for each container that ends there",
            grace: Duration::from_secs(60),
            failures_per_entry: Some(9),
            kept_may_break: true,
        },
        entries: &["node3"],
        agents: Agents::Current,
        play: worker,
    },
    Scenario {
        name: "replaced",
        event: "the agent of node3 is killed, and all tasks are replaced",
        required: Requirement {
            text: "no new connection lost through the nodes with an agent",
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: &["node1", "node2"],
        agents: Agents::Current,
        play: replaced,
    },
    Scenario {
        name: "unannounced",
        event: "the agent of node3 is killed, then those of node1 and node2 are killed and started again",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Current,
        play: unannounced,
    },
    Scenario {
        name: "restart",
        event: "the agents are stopped (SIGTERM) and started again, one by one",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Current,
        play: restart,
    },
    Scenario {
        name: "firewall",
        event: "a firewall between node1 and node2 drops the mesh's UDP port for 10 s",
        required: Requirement {
            text: "nothing lost later than 1 s, and nothing after the return",
            grace: Duration::from_secs(1),
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        play: firewall,
    },
    Scenario {
        name: "partition",
        event: "node1, the manager, and the two others do not reach each other for 30 s",
        required: Requirement {
            text: "each half serves from what it has: nothing lost later than 1 s; all as before within 2 s of the return",
            grace: Duration::from_secs(1),
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        play: partition,
    },
    Scenario {
        name: "all",
        event: "no replica accepts anything for 5 s",
        required: Requirement {
            text: "all are tried: nothing lost later than 1 s after they answer again",
            grace: Duration::from_secs(6),
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        play: all,
    },
    Scenario {
        name: "upgrade",
        event: "the agents of an earlier release are stopped and this one's started, one by one",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Earlier,
        play: upgrade,
    },
];

fn cable(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    scene.event();
    lab.cut_off("node3")?;
    let out = scene.until_out("node3", &["node1", "node2"]);
    thread::sleep(Duration::from_secs(20));
    scene.event();
    lab.reconnect("node3")?;
    out?;
    // Swarm has moved its tasks meanwhile, and moves none back: the node itself must answer for all.
    scene.until_back()
}

fn container(scene: &Scene<'_>) -> Result<()> {
    let id = scene.container_on("node3")?;
    scene.event();
    scene.lab().docker("node3", ["kill", "--signal", "KILL", &id])?;
    scene.lab().wait_for_tasks(SERVICE, REPLICAS).map(drop)?;
    scene.until_all_known()
}

fn hung(scene: &Scene<'_>) -> Result<()> {
    let id = scene.container_on("node3")?;
    scene.event();
    scene.accepts_nothing("node3", &id, true)?;
    thread::sleep(Duration::from_secs(15));
    scene.accepts_nothing("node3", &id, false)?;
    thread::sleep(Duration::from_secs(2));
    scene.until_all_answer()
}

fn all(scene: &Scene<'_>) -> Result<()> {
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
    thread::sleep(Duration::from_secs(5));
    scene.event();
    for (node, id) in &replicas {
        scene.accepts_nothing(node, id, false)?;
    }
    thread::sleep(Duration::from_secs(7));
    scene.until_all_answer()
}

fn partition(scene: &Scene<'_>) -> Result<()> {
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

fn manager(scene: &Scene<'_>) -> Result<()> {
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

fn worker(scene: &Scene<'_>) -> Result<()> {
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

fn replaced(scene: &Scene<'_>) -> Result<()> {
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

fn unannounced(scene: &Scene<'_>) -> Result<()> {
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

fn restart(scene: &Scene<'_>) -> Result<()> {
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

fn upgrade(scene: &Scene<'_>) -> Result<()> {
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

fn firewall(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab();
    // On the wire, as between two networks: the nodes themselves see nothing of it.
    let table = "table bridge firewall {\n\
                 chain forward { type filter hook forward priority 0;\n\
                 iifname { \"node1\", \"node2\" } oifname { \"node1\", \"node2\" } udp dport 6081 drop; }\n}\n";
    scene.event();
    lab.run_on_the_wire(&["nft", "-f", "-"], table)?;
    thread::sleep(Duration::from_secs(10));
    scene.event();
    lab.run_on_the_wire(&["nft", "delete", "table", "bridge", "firewall"], "")?;
    wait_until("all to be as before", Duration::from_secs(10), || {
        scene.until_all_answer()
    })
}
