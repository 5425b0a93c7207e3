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
    back_within: None,
};

/// The same of new connections only: what a kept one was connected to is gone, or out of reach.
const NO_NEW_LOST: Requirement = Requirement {
    text: "no new connection lost",
    kept_may_break: true,
    ..NOTHING_LOST
};

/// A scenario as most are: all nodes of a lab with one manager are asked, and nothing may be lost.
const fn scenario(name: &'static str, event: &'static str, play: fn(&Scene<'_>) -> Result<()>) -> Scenario {
    Scenario {
        name,
        event,
        required: NOTHING_LOST,
        entries: ALL,
        agents: Agents::Current,
        cluster: ONE_MANAGER,
        play,
    }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        required: Requirement {
            text: "no new connection lost later than 1 s after the cut; all as before within 2 s of the return",
            grace: Duration::from_secs(1),
            back_within: Some(Duration::from_secs(2)),
            ..NO_NEW_LOST
        },
        entries: &["node1", "node2"],
        ..scenario("cable", "the cable of node3 is out for 20 s", play::cable)
    },
    Scenario {
        required: Requirement {
            text: "nothing lost later than 100 ms",
            grace: Duration::from_millis(100),
            ..NO_NEW_LOST
        },
        ..scenario(
            "container",
            "the process of a replica on node3 is killed (kill -9)",
            play::container,
        )
    },
    Scenario {
        required: Requirement {
            text: "at most 3 unanswered opens for each entry node; back by itself",
            grace: Duration::from_secs(15),
            failures_per_entry: Some(3),
            ..NO_NEW_LOST
        },
        ..scenario("hung", "a replica on node3 accepts nothing for 15 s", play::hung)
    },
    Scenario {
        required: Requirement {
            text: "no new connection lost, as the replicas' nodes have agents",
            ..NO_NEW_LOST
        },
        ..scenario(
            "manager",
            "the agent of the only manager is killed, then a replica is removed and one added",
            play::manager,
        )
    },
    Scenario {
        required: Requirement {
            text: "no new connection lost through the nodes with an agent",
            ..NO_NEW_LOST
        },
        entries: &["node1", "node2"],
        ..scenario(
            "worker",
            "the agent of node3 is killed, and tasks move from its node and to it",
            play::worker,
        )
    },
    Scenario {
        required: Requirement {
            text: "at most 3 opens lost for each container that ends there",
            grace: Duration::from_secs(60),
            failures_per_entry: Some(9),
            ..NO_NEW_LOST
        },
        entries: &["node3"],
        ..scenario(
            "worker-entry",
            "the same, and node3 itself is asked",
            play::worker,
        )
    },
    Scenario {
        required: Requirement {
            text: "no new connection lost through the nodes with an agent",
            ..NO_NEW_LOST
        },
        entries: &["node1", "node2"],
        ..scenario(
            "replaced",
            "the agent of node3 is killed, and all tasks are replaced",
            play::replaced,
        )
    },
    scenario(
        "unannounced",
        "the agent of node3 is killed, then those of node1 and node2 are killed and started again",
        play::unannounced,
    ),
    scenario(
        "restart",
        "the agents are stopped (SIGTERM) and started again, one by one",
        play::restart,
    ),
    Scenario {
        required: Requirement {
            text: "nothing lost later than 1 s, and nothing after the return",
            grace: Duration::from_secs(1),
            ..NO_NEW_LOST
        },
        ..scenario(
            "firewall",
            "a firewall between node1 and node2 drops the mesh's UDP port for 10 s",
            play::firewall,
        )
    },
    Scenario {
        required: Requirement {
            text: "each half serves from what it has: nothing lost later than 1 s; all as before within 2 s of the return",
            grace: Duration::from_secs(1),
            back_within: Some(Duration::from_secs(2)),
            ..NO_NEW_LOST
        },
        ..scenario(
            "partition",
            "node1, the manager, and the two others do not reach each other for 30 s",
            play::partition,
        )
    },
    Scenario {
        required: Requirement {
            text: "all are tried: nothing lost later than 1 s after they answer again",
            grace: Duration::from_secs(6),
            ..NO_NEW_LOST
        },
        ..scenario("all", "no replica accepts anything for 5 s", play::all)
    },
    Scenario {
        agents: Agents::Earlier,
        ..scenario(
            "upgrade",
            "the agents of an earlier release are stopped and this one's started, one by one",
            play::upgrade,
        )
    },
    Scenario {
        required: Requirement {
            text: "nothing lost, and no node taken for silent",
            ..NOTHING_LOST
        },
        ..scenario(
            "busy",
            "every processor is busy with something else for 10 minutes",
            play::busy,
        )
    },
    Scenario {
        required: Requirement {
            text: "workers keep the fresher snapshot: no new connection lost",
            ..NO_NEW_LOST
        },
        entries: &["node1", "node2", "node4"],
        cluster: Cluster {
            nodes: 4,
            managers: 3,
        },
        ..scenario(
            "quorum",
            "node3, whose snapshots node4 follows, is cut off from the other managers; then all tasks are replaced",
            play::quorum,
        )
    },
];
