//! Stories of nodes whose cluster address is on a device without MAC addresses, by which clients can come as
//! well.

use anyhow::{Context, Result, ensure};
use xtask::lab::{traffic::host, wait::patience};

use crate::{
    basics::{MIB, transfer, with_far_replica},
    expect::in_rotation,
    fixture::{Fixture, UDP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[
    ("what_carries_the_packets_is_named", hooks_are_named),
    ("big_transfers_through_a_remote_replica_arrive_whole", transfers),
    ("udp_is_echoed_by_local_and_remote_replicas", udp),
];

/// Where the packets between nodes go in and out.
const DEVICE: &str = "wg0";

fn hooks_are_named(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        let status = fixture.lab.meshctl(node, &["status"])?;
        let line = |name: &str| {
            status
                .lines()
                .find(|line| line.contains(name))
                .unwrap_or_default()
        };
        ensure!(
            line(DEVICE).contains("tc") && line("eth0").contains("xdp-native"),
            "{node} reports\n{status}"
        );
    }
    Ok(())
}

/// The client and the replica's node are both behind the device.
fn transfers(fixture: &Fixture) -> Result<()> {
    with_far_replica(fixture, &["9300:80"], || {
        let address = cluster_address(fixture, "node1")?;
        transfer(
            fixture,
            &format!("http://{address}:9300/"),
            64 * MIB / u64::from(patience()),
        )
    })
}

fn udp(fixture: &Fixture) -> Result<()> {
    let client = cluster_address(fixture, "client")?;
    for node in fixture.lab.nodes() {
        let address = cluster_address(fixture, node)?;
        let replies = in_rotation(|| fixture.lab.datagrams("client", &format!("{address}:{UDP}"), 10))
            .with_context(|| format!("from the client to {node}"))?;
        for reply in &replies {
            ensure!(host(&reply.peer) == client, "{} saw {}", reply.task, reply.peer);
        }
    }
    Ok(())
}

fn cluster_address(fixture: &Fixture, name: &str) -> Result<String> {
    let addresses = fixture.lab.addresses(name)?;
    addresses.last().cloned().context("it has addresses")
}
