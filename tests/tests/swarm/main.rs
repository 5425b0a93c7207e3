//! The mesh on a real Swarm: a user's stories, in groups that share a lab.
//!
//! `cargo test --package mesh-tests --test swarm -- GROUP` runs one group; those that need a kernel with
//! IPVS, VLAN devices or bonds are run by `cargo xtask vm test`. `MESH_LANE=changes` and `MESH_LANE=variants`
//! run a part each, in labs of different names, so that both can run at the same time.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::Arguments;
use xtask::lab::{Offloads, Topology, agent::DEFAULT_ARGUMENTS};

use crate::group::{Group, Lane, Shared};

mod basics;
mod beside;
mod changes;
mod chaos;
mod checks;
mod choosing;
mod datapath_change;
mod devices;
mod drains;
mod expect;
mod fixture;
mod floods;
mod group;
mod handover;
mod host_firewall;
mod hostile;
mod ipv6;
mod labs;
mod liveness;
mod load;
mod networks;
mod observe;
mod policy;
mod rotation;
mod stack;
mod wireguard;

/// The whole product with its defaults: native XDP, replies by tunnel.
const DEFAULT: Group = Group {
    name: "stories",
    lane: Lane::Changes,
    managers: 1,
    offloads: Offloads::Off,
    topology: Topology::OneCard,
    agents: Some(DEFAULT_ARGUMENTS),
    needs_a_vm: false,
    stories: &[
        checks::STORIES,
        // Before those that use UDP: a drain waits until its flows have been idle.
        drains::STORIES,
        observe::STORIES,
        basics::REQUESTS,
        basics::TRANSFERS,
        ipv6::REQUESTS,
        ipv6::TRANSFERS,
        ipv6::STORIES,
        networks::HIDDEN,
        changes::STORIES,
        choosing::STORIES,
        host_firewall::STORIES,
        policy::STORIES,
        hostile::STORIES,
        floods::STORIES,
        rotation::STORIES,
    ],
};

/// In an order in which labs can be kept.
const GROUPS: &[Group] = &[
    DEFAULT,
    // The basic stories in the other variants of the data path.
    Group {
        name: "dsr",
        lane: Lane::Variants,
        agents: Some(&["--xdp", "native", "--return-mode", "dsr"]),
        stories: &[
            basics::REQUESTS,
            basics::TRANSFERS,
            ipv6::REQUESTS,
            ipv6::TRANSFERS,
            networks::HIDDEN,
        ],
        ..DEFAULT
    },
    Group {
        name: "generic",
        lane: Lane::Variants,
        agents: Some(&["--xdp", "generic"]),
        stories: &[
            basics::REQUESTS,
            basics::TRANSFERS,
            ipv6::REQUESTS,
            ipv6::TRANSFERS,
        ],
        ..DEFAULT
    },
    // The agent as a global service.
    Group {
        name: "stack",
        // Not for its kind, but so that both parts take about as long.
        lane: Lane::Variants,
        agents: None,
        stories: &[stack::STORIES],
        ..DEFAULT
    },
    // Agents that come, go and die while requests do not stop.
    Group {
        name: "handover",
        managers: 2,
        stories: &[
            liveness::STORIES,
            chaos::STORIES,
            handover::STORIES,
            datapath_change::STORIES,
        ],
        ..DEFAULT
    },
    // A node that gets another address.
    Group {
        name: "renewed",
        // As the stack's: it gets the lab that the stack leaves.
        lane: Lane::Variants,
        managers: 2,
        stories: &[networks::RENEWED],
        ..DEFAULT
    },
    Group {
        name: "tc",
        lane: Lane::Variants,
        offloads: Offloads::On,
        agents: Some(&["--xdp", "off"]),
        stories: &[
            basics::REQUESTS,
            basics::TRANSFERS,
            ipv6::REQUESTS,
            ipv6::TRANSFERS,
        ],
        ..DEFAULT
    },
    Group {
        name: "clsact",
        lane: Lane::Variants,
        offloads: Offloads::On,
        agents: Some(&["--xdp", "off", "--tc", "clsact"]),
        stories: &[
            basics::REQUESTS,
            basics::TRANSFERS,
            ipv6::REQUESTS,
            ipv6::TRANSFERS,
        ],
        ..DEFAULT
    },
    // Nodes whose default route and cluster address are on different cards.
    Group {
        name: "two-cards",
        lane: Lane::Variants,
        topology: Topology::TwoCards,
        stories: &[
            networks::STORIES,
            policy::BY_INTERFACE,
            networks::REROUTED,
            basics::REQUESTS,
            ipv6::REQUESTS,
        ],
        ..DEFAULT
    },
    // Nodes whose card is a port of a bridge, with the agent's defaults.
    Group {
        name: "bridge",
        lane: Lane::Variants,
        offloads: Offloads::On,
        topology: Topology::Bridge,
        agents: Some(&[]),
        stories: &[networks::STORIES, basics::REQUESTS, ipv6::REQUESTS],
        ..DEFAULT
    },
    // Nodes and clients that are no neighbours, and answers that leave by another card than requests come in.
    Group {
        name: "routed",
        lane: Lane::Variants,
        topology: Topology::Routed,
        stories: &[
            networks::STORIES,
            basics::REQUESTS,
            basics::TRANSFERS,
            ipv6::REQUESTS,
        ],
        ..DEFAULT
    },
    // Nodes with several addresses on a card and on the loopback device.
    Group {
        name: "multihomed",
        lane: Lane::Variants,
        topology: Topology::Multihomed,
        stories: &[
            networks::STORIES,
            networks::MOVING,
            basics::REQUESTS,
            ipv6::REQUESTS,
        ],
        ..DEFAULT
    },
    // Nodes whose cluster address is on a device without MAC addresses, beside XDP on the card.
    Group {
        name: "wireguard",
        lane: Lane::Variants,
        topology: Topology::Wireguard,
        stories: &[
            networks::STORIES,
            wireguard::STORIES,
            basics::REQUESTS,
            ipv6::REQUESTS,
        ],
        ..DEFAULT
    },
    // Nodes with a router between them that carries less than their cards do, and does not report it.
    Group {
        name: "narrow",
        lane: Lane::Variants,
        topology: Topology::Narrow,
        stories: &[networks::NARROW, basics::REQUESTS, ipv6::REQUESTS],
        ..DEFAULT
    },
    // Nodes whose cards carry less than their containers' do.
    Group {
        name: "small-mtu",
        lane: Lane::Variants,
        topology: Topology::SmallMtu,
        stories: &[networks::SMALL_MTU, ipv6::REQUESTS, ipv6::TRANSFERS],
        ..DEFAULT
    },
    // Nodes behind a router that translates their addresses.
    Group {
        name: "nat",
        lane: Lane::Variants,
        topology: Topology::Nat,
        agents: None,
        stories: &[networks::NAT],
        ..DEFAULT
    },
    // Nodes whose cluster address is in a VLAN of the card that has the default route.
    Group {
        name: "vlan",
        topology: Topology::Vlan,
        needs_a_vm: true,
        stories: &[networks::STORIES, devices::VLAN, ipv6::REQUESTS],
        ..DEFAULT
    },
    // Nodes with a bond of two cards.
    Group {
        name: "bond",
        topology: Topology::Bond,
        needs_a_vm: true,
        stories: &[networks::STORIES, devices::BOND, ipv6::REQUESTS],
        ..DEFAULT
    },
    // Beside Docker's own mesh at work, which is made of IPVS.
    Group {
        name: "beside",
        needs_a_vm: true,
        stories: &[
            beside::ON_EBPF,
            basics::REQUESTS,
            basics::TRANSFERS,
            beside::ON_BOTH,
            beside::ON_IPVS,
        ],
        ..DEFAULT
    },
    // What fails where all agents are on IPVS.
    Group {
        name: "ipvs",
        agents: Some(&["--datapath", "ipvs"]),
        needs_a_vm: true,
        stories: &[liveness::ON_IPVS],
        ..DEFAULT
    },
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share labs, and the machine's processors.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Mutex::new(Shared::default()));
    let lane = match Lane::chosen() {
        Ok(lane) => lane,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    // The lane of the variants is the shorter one otherwise.
    if lane != Some(Lane::Changes) {
        trials.extend(labs::trials());
    }
    for group in GROUPS {
        if lane.is_none_or(|lane| lane == group.lane) {
            trials.extend(group::trials(*group, &shared));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Takes the lab down.
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Shared::default();
    conclusion.exit_code()
}
