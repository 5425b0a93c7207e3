//! Puts an XDP program that passes everything at the wire's end of a veth; [`xdp_pass`] explains why.
//! Depends on `space`.

use std::{os::fd::AsFd, path::Path};

use anyhow::{Context, Result};
use mesh_support::{
    bpf,
    namespace::{in_new_mounts, mount_new},
    xdp_pass,
};

use super::{space::enter_network, state::SpaceRecord};
use crate::command::run;

/// Puts the program on devices of a space. It goes with the device.
///
/// # Errors
/// When the kernel refuses a step.
pub(super) fn pass_all(space: &SpaceRecord, devices: &[&str]) -> Result<()> {
    // `ip` takes a pinned program only, so it is pinned on a bpf file system that only this thread and the
    // `ip` it starts see, and that is gone with the thread.
    in_new_mounts(|| attach(space, devices)).context("could not get mounts of our own")?
}

fn attach(space: &SpaceRecord, devices: &[&str]) -> Result<()> {
    let directory = Path::new("/run");
    mount_new("bpf", directory)?;
    let program = xdp_pass::load().context("could not load an XDP program that passes everything")?;
    let pin = directory.join("pass");
    bpf::pin(program.as_fd(), &pin).context("could not pin it")?;
    for device in devices {
        let pin = pin.to_string_lossy();
        run(&mut enter_network(
            space,
            ["ip", "link", "set", "dev", device, "xdp", "pinned", &pin],
        ))?;
    }
    Ok(())
}
