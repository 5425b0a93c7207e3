//! The scenarios: what goes wrong, and what that may cost the clients. `web` has five replicas on three
//! nodes, of which `node1` manages. Depends on `fixture`, `outcome` and `play`.

use std::time::Duration;

use anyhow::Result;

use super::{
    fixture::{Agents, Cluster, ONE_MANAGER, Scene},
    outcome::Requirement,
    play,
};

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
    pub(super) cluster: Cluster,
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
        cluster: ONE_MANAGER,
        play: play::cable,
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
        cluster: ONE_MANAGER,
        play: play::container,
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
        cluster: ONE_MANAGER,
        play: play::hung,
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
        cluster: ONE_MANAGER,
        play: play::manager,
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
        cluster: ONE_MANAGER,
        play: play::worker,
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
        cluster: ONE_MANAGER,
        play: play::worker,
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
        cluster: ONE_MANAGER,
        play: play::replaced,
    },
    Scenario {
        name: "unannounced",
        event: "the agent of node3 is killed, then those of node1 and node2 are killed and started again",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Current,
        cluster: ONE_MANAGER,
        play: play::unannounced,
    },
    Scenario {
        name: "restart",
        event: "the agents are stopped (SIGTERM) and started again, one by one",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Current,
        cluster: ONE_MANAGER,
        play: play::restart,
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
        cluster: ONE_MANAGER,
        play: play::firewall,
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
        cluster: ONE_MANAGER,
        play: play::partition,
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
        cluster: ONE_MANAGER,
        play: play::all,
    },
    Scenario {
        name: "upgrade",
        event: "the agents of an earlier release are stopped and this one's started, one by one",
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Earlier,
        cluster: ONE_MANAGER,
        play: play::upgrade,
    },
    Scenario {
        name: "busy",
        event: "every processor is busy with something else for 10 minutes",
        required: Requirement {
            text: "nothing lost, and no node taken for silent",
            ..NOTHING_LOST
        },
        entries: ALL,
        agents: Agents::Current,
        cluster: ONE_MANAGER,
        play: play::busy,
    },
    Scenario {
        name: "quorum",
        event: "node3, whose snapshots node4 follows, is cut off from the other managers; then all tasks are replaced",
        required: Requirement {
            text: "workers keep the fresher snapshot: no new connection lost",
            kept_may_break: true,
            ..NOTHING_LOST
        },
        entries: &["node1", "node2", "node4"],
        agents: Agents::Current,
        cluster: Cluster {
            nodes: 4,
            managers: 3,
        },
        play: play::quorum,
    },
];
