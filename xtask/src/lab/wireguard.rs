//! WireGuard between the nodes and the client: `wg0` on each, over the first network. By `wireguard-go`, as
//! not every kernel has WireGuard; to the mesh both are a device without MAC addresses. Depends on `space`
//! and `state`.

use std::fmt::Write as _;

use anyhow::Result;

use super::{
    space::{enter, enter_network},
    state::State,
    topology::FIRST,
};
use crate::command::{command, run, run_with_input};

const DEVICE: &str = "wg0";
const PORT: u16 = 51_820;

/// One end: a space, the last byte of its addresses, and its keys.
struct End {
    name: String,
    host: u8,
    private: String,
    public: String,
}

/// Connects spaces that are plugged into the wire, given with the last bytes of their addresses. Does nothing
/// in other topologies. The programs end with their spaces.
///
/// # Errors
/// When a program fails.
pub(super) fn connect(state: &State, spaces: &[(String, u8)]) -> Result<()> {
    let address = |host| state.topology.wireguard_address(state.subnet, host);
    if address(0).is_none() {
        return Ok(());
    }
    let mut ends = Vec::new();
    for (name, host) in spaces {
        let private = run(&mut command(["wg", "genkey"]))?;
        let public = run_with_input(&mut command(["wg", "pubkey"]), private.as_bytes())?;
        ends.push(End {
            name: name.clone(),
            host: *host,
            private,
            public: public.trim().to_owned(),
        });
    }
    for end in &ends {
        let Some(own) = address(end.host) else { continue };
        let space = state.space(&end.name)?;
        let mut settings = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", end.private);
        for peer in ends.iter().filter(|peer| peer.host != end.host) {
            let (Some(inside), outside) = (address(peer.host), FIRST.address(state.subnet, peer.host)) else {
                continue;
            };
            let key = &peer.public;
            write!(
                settings,
                "[Peer]\nPublicKey = {key}\nEndpoint = {outside}:{PORT}\nAllowedIPs = {inside}/32\n"
            )?;
        }
        run(&mut enter(space, ["wireguard-go", DEVICE]))?;
        run_with_input(
            &mut enter(space, ["wg", "setconf", DEVICE, "/dev/stdin"]),
            settings.as_bytes(),
        )?;
        let batch = format!("address add {own}/24 dev {DEVICE}\nlink set {DEVICE} up\n");
        run_with_input(&mut enter_network(space, ["ip", "-batch", "-"]), batch.as_bytes())?;
    }
    Ok(())
}
