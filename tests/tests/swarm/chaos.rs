//! The short scenarios of `cargo xtask chaos`, played briefly: each must meet the requirement of its row.

use anyhow::Result;
use xtask::chaos::play_briefly;

use crate::{fixture::Fixture, group::Story};

pub(crate) const STORIES: &[Story] = &[
    ("chaos_container", |fixture| play(fixture, "container")),
    ("chaos_hung", |fixture| play(fixture, "hung")),
    ("chaos_all", |fixture| play(fixture, "all")),
    ("chaos_firewall", |fixture| play(fixture, "firewall")),
    ("chaos_cable", |fixture| play(fixture, "cable")),
];

fn play(fixture: &Fixture, scenario: &str) -> Result<()> {
    println!("    {}", play_briefly(&fixture.lab, scenario)?);
    Ok(())
}
