//! Stories of nodes whose network is more than one card with one address.

use anyhow::{Context, Result, ensure};

use crate::{
    expect::{expect_client_address, expect_rotation},
    fixture::{Fixture, HTTP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[(
    "every_address_of_every_node_is_answered_by_every_replica",
    every_address,
)];

fn every_address(fixture: &Fixture) -> Result<()> {
    let clients = fixture.lab.addresses("client")?;
    for node in fixture.lab.nodes() {
        for (address, client) in fixture.lab.addresses(node)?.iter().zip(&clients) {
            let replies = fixture
                .lab
                .fetch("client", &format!("http://{address}:{HTTP}/"), 10)?;
            let context = || format!("from the client to {node} by {address}");
            expect_rotation(&replies, 5).with_context(context)?;
            expect_client_address(&replies, client).with_context(context)?;
        }
        let status = fixture.lab.meshctl(node, &["status"])?;
        ensure!(
            !status.contains("no hook") && !status.contains("not resolved"),
            "{node} reports\n{status}"
        );
    }
    Ok(())
}
