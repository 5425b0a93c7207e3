//! Stories of nodes whose uplink is a VLAN device on a card, or a bond of two cards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{Reply, wait::patience, wait_until};

use crate::{
    basics::{MIB, transfer, with_far_replica},
    expect::{expect_answers, expect_requests_in_rotation, expect_rotation},
    fixture::{Fixture, HTTP, UDP},
    group::Story,
};

/// For nodes whose cluster address is in a VLAN of the card that has the default route.
pub(crate) const VLAN: &[Story] = &[
    ("tc_carries_a_vlan_and_the_card_below_it", vlans_hooks),
    ("large_packets_and_errors_pass_by_every_address", every_size),
];

/// For nodes with a bond.
pub(crate) const BOND: &[Story] = &[
    ("native_xdp_carries_a_bond", bonds_hooks),
    ("large_packets_and_errors_pass_by_every_address", every_size),
    ("a_bond_that_loses_a_cable_goes_on", lost_cable),
];

/// The largest datagram of a client that fits into the tunnel: 1500 less the tunnel's 56 and the headers' 28.
const LARGEST: usize = 1416;

fn vlans_hooks(fixture: &Fixture) -> Result<()> {
    expect_hooks(
        fixture,
        &[
            ("eth0", "tc", "VLAN devices are on it"),
            ("eth0.5", "tc", "native XDP refused"),
        ],
    )
}

fn bonds_hooks(fixture: &Fixture) -> Result<()> {
    expect_hooks(fixture, &[("bond0", "xdp-native", "")])
}

/// Every node's status names exactly these interfaces, each with its hook and a part of the reason for it.
fn expect_hooks(fixture: &Fixture, expected: &[(&str, &str, &str)]) -> Result<()> {
    for node in fixture.lab.nodes() {
        let status = fixture.lab.meshctl(node, &["status", "--format", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let found = status["interfaces"].as_array().context("no interfaces")?;
        let matches = |interface: &Value, (name, mode, reason): &(&str, &str, &str)| {
            interface["interface"] == *name
                && interface["mode"] == *mode
                && interface["reason"]
                    .as_str()
                    .is_some_and(|found| found.contains(reason))
        };
        ensure!(
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| matches(found, expected)),
            "{node} reports {found:?}, not {expected:?}"
        );
        // On an emulated processor the doctor takes longer than its command line waits.
        if patience() == 1 {
            let doctor = fixture.lab.meshctl(node, &["doctor"])?;
            let (device, ..) = expected.last().context("no interfaces are expected")?;
            ensure!(
                doctor.contains(&format!("is on {device}, an uplink")),
                "meshctl doctor printed on {node}\n{doctor}"
            );
        }
    }
    Ok(())
}

fn every_size(fixture: &Fixture) -> Result<()> {
    with_far_replica(fixture, &["9300:80", "9301:81/udp"], || {
        for address in fixture.lab.addresses("node1")? {
            let by = || format!("by {address}");
            transfer(
                fixture,
                &format!("http://{address}:9300/"),
                96 * MIB / u64::from(patience()),
            )
            .with_context(by)?;
            let target = format!("{address}:9301");
            expect_answers(&[datagram(fixture, &target, LARGEST)?]).with_context(by)?;
            let refused = datagram(fixture, &target, LARGEST + 1)?;
            ensure!(
                refused.error.contains("too long"),
                "a datagram that does not fit {}: {} {}",
                by(),
                refused.outcome,
                refused.error
            );
        }
        for node in fixture.lab.nodes() {
            for address in fixture.lab.addresses(node)? {
                let target = format!("{address}:{UDP}");
                let replies = fixture.lab.datagrams("client", &target, 10)?;
                expect_rotation(&replies, 5).with_context(|| format!("from the client to {target}"))?;
            }
        }
        Ok(())
    })
}

fn datagram(fixture: &Fixture, target: &str, size: usize) -> Result<Reply> {
    let size = size.to_string();
    let replies = fixture.lab.replies("client", &["udp", target, "--size", &size])?;
    replies.into_iter().next().context("no reply")
}

/// The cable of the card that carries is pulled at the wire, and put back.
fn lost_cable(fixture: &Fixture) -> Result<()> {
    for (cable, remaining) in [("node1", "eth1"), ("node1-eth1", "eth0")] {
        let set = |state| {
            fixture
                .lab
                .run_on_the_wire(&["ip", "link", "set", "dev", cable, state], "")
        };
        set("down")?;
        let outcome = wait_until(
            "the bond to change to the other card",
            Duration::from_secs(5),
            || {
                let bond = fixture.lab.run("node1", ["cat", "/proc/net/bonding/bond0"])?;
                ensure!(
                    bond.contains(&format!("Currently Active Slave: {remaining}")),
                    "{bond}"
                );
                Ok(())
            },
        )
        .and_then(|()| expect_requests_in_rotation(&fixture.lab, "client", &fixture.url("node1", HTTP)?))
        .with_context(|| format!("on {remaining} alone"));
        set("up")?;
        outcome?;
        wait_until("the cable to be back", Duration::from_secs(5), || {
            let links = ["ip", "-oneline", "link", "show", "master", "bond0"];
            let links = fixture.lab.run("node1", links)?;
            ensure!(!links.contains("NO-CARRIER"), "{links}");
            Ok(())
        })?;
    }
    Ok(())
}
