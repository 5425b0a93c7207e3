//! The loaded eBPF programs, fed with crafted frames: verdict and whole output frame, by
//! `BPF_PROG_TEST_RUN` (Linux 5.18 for a chosen interface).
//!
//! Each test has a network namespace, a pin directory and a cgroup of its own, programs the data path
//! through [`mesh_agent::datapath::Datapath`] as the agent does, and opens its flows by packets. Needs
//! root, a mounted bpffs and cgroup2, iproute2, and an agent built with its eBPF object.

mod balance;
mod delivery;
mod forwarding;
mod garbage;
mod life;
mod refusal;
mod replies;
