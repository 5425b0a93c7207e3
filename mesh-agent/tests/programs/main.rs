//! The loaded eBPF programs on crafted frames, by `BPF_PROG_TEST_RUN` (Linux 5.18 for a chosen interface):
//! compares verdict and whole output frame.
//!
//! Each test has a node of its own ([`mesh_agent_testing::node`]), fills the maps through
//! [`mesh_agent::datapath::Datapath`] as the agent does, and opens flows by packets. Needs root, a mounted
//! cgroup2, iproute2, and an agent built with its eBPF object.

mod balance;
mod crash;
mod delivery;
mod explain;
mod fixtures;
mod flood;
mod flows;
mod forwarding;
mod full;
mod fuzz;
mod garbage;
mod ipv6;
mod keys;
mod layer3;
mod life;
mod monitor;
mod probes;
mod refusal;
mod replies;
mod signals;
mod source_rules;
mod takeover;
mod undeliverable;
