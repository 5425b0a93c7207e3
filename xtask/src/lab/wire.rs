//! The lab's network: a bridge in a namespace of its own, so that the host's interfaces, iptables and
//! sysctls stay as they are; nodes can be cut off from it. Depends on `space` and `state`.

use anyhow::Result;

use super::{
    Lab, Offloads, poll,
    space::{enter_network, start},
    state::State,
};
use crate::command::{run, run_with_input};

/// The last byte of the wire's own address, the default route of all.
pub const ROUTER: u8 = 254;

/// The last byte of the client's address.
pub const CLIENT: u8 = 200;

/// Starts the wire.
///
/// # Errors
/// When the kernel refuses a bridge.
pub fn lay(state: &mut State) -> Result<()> {
    start(state, "wire")?;
    let batch = format!(
        "link set lo up\nlink add br0 type bridge forward_delay 0 mcast_snooping 0\n\
         address add 10.99.{}.{ROUTER}/24 dev br0\nlink set br0 up\n",
        state.subnet
    );
    run_with_input(
        &mut enter_network(state.space("wire")?, ["ip", "-batch", "-"]),
        batch.as_bytes(),
    )?;
    Ok(())
}

/// Plugs a space into the wire: its end is `eth0` with the address 10.99.L.`host`.
///
/// # Errors
/// When the kernel refuses a veth or an off-load setting.
pub fn plug(state: &State, name: &str, host: u8, offloads: Offloads) -> Result<()> {
    let wire = state.space("wire")?;
    let space = state.space(name)?;
    let subnet = state.subnet;
    // The pid is the host's: this `ip` keeps the host's pid namespace.
    let outside = format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master br0\nlink set {name} up\n",
        space.init.pid
    );
    run_with_input(
        &mut enter_network(wire, ["ip", "-batch", "-"]),
        outside.as_bytes(),
    )?;
    let inside = format!(
        "link set lo up\naddress add 10.99.{subnet}.{host}/24 dev eth0\nlink set eth0 up\n\
         route add default via 10.99.{subnet}.{ROUTER}\n"
    );
    run_with_input(
        &mut enter_network(space, ["ip", "-batch", "-"]),
        inside.as_bytes(),
    )?;
    if offloads == Offloads::Off {
        // A real wire carries finished checksums, and takes what XDP sends at once.
        for (space, device) in [(wire, name), (space, "eth0")] {
            run(&mut enter_network(space, ["ethtool", "-K", device, "tx", "off"]))?;
        }
        poll::pass_all(wire, &[name])?;
    }
    Ok(())
}

impl Lab {
    /// Cuts a node off from all others and the client. Its own end of the wire stays up, so that
    /// it sees no link failure.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn cut_off(&self, name: &str) -> Result<()> {
        set_port(&self.state, name, &["nomaster"])
    }

    /// Connects a node again that was cut off.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn reconnect(&self, name: &str) -> Result<()> {
        set_port(&self.state, name, &["master", "br0"])
    }

    /// Runs a program on the wire, with a text on its standard input: what is between the nodes, and none of
    /// them sees.
    ///
    /// # Errors
    /// When it fails; with its output.
    pub fn run_on_the_wire(&self, arguments: &[&str], input: &str) -> Result<()> {
        let wire = self.state.space("wire")?;
        run_with_input(
            &mut enter_network(wire, arguments.iter().copied()),
            input.as_bytes(),
        )?;
        Ok(())
    }
}

fn set_port(state: &State, name: &str, arguments: &[&str]) -> Result<()> {
    // Its device at the wire has its name.
    state.space(name)?;
    let wire = state.space("wire")?;
    run(enter_network(wire, ["ip", "link", "set", "dev", name]).args(arguments))?;
    Ok(())
}
