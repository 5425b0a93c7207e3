//! The lab's network: bridges in a namespace of their own, so that the host's interfaces, iptables and
//! sysctls stay as they are; nodes can be cut off from it. Depends on `space`, `state` and `topology`.

use anyhow::{Error, Result, anyhow, ensure};

use super::{
    Lab, Offloads, poll,
    space::{enter_network, start},
    state::{SpaceRecord, State},
    topology::{FIRST, Network, SECOND, Topology, port, translated_address},
};
use crate::command::{run, run_with_input};

/// The last byte of the wire's own address, the default route of all.
pub const ROUTER: u8 = 254;

/// The last byte of the client's address.
pub const CLIENT: u8 = 200;

/// What the router of [`Topology::Narrow`] carries between nodes, bytes.
pub const NARROW_MTU: u16 = 1400;

/// The MTU of the nodes' cards in [`Topology::SmallMtu`], bytes.
pub const SMALL_MTU: u16 = 1450;

/// Starts the wire.
///
/// # Errors
/// When the kernel refuses a bridge.
pub fn lay(state: &mut State) -> Result<()> {
    start(state, "wire")?;
    let mut batch = String::from("link set lo up\n");
    let bridged = state.topology.networks().iter();
    for network in bridged.filter(|_| !state.topology.is_routed()) {
        let bridge = network.bridge;
        let address = network.address(state.subnet, ROUTER);
        batch += &match network.vlan() {
            Some((_, number)) => {
                format!(
                    "link add link {} name {bridge} type vlan id {number}\n",
                    FIRST.bridge
                )
            }
            None => format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n"),
        };
        batch += &format!("address add {address}/24 dev {bridge}\nlink set {bridge} up\n");
    }
    if state.topology == Topology::Bond {
        // To fail before anything else is started.
        batch += "link add bond0 type bond\nlink delete bond0\n";
    }
    run_with_input(
        &mut enter_network(state.space("wire")?, ["ip", "-batch", "-"]),
        batch.as_bytes(),
    )
    .map_err(|error| explain(error, state.topology))?;
    // A router between the nodes' subnets, which does not tell them of shorter ways.
    let settings = "net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1\nnet.ipv4.conf.all.send_redirects=0\n\
                    net.ipv4.conf.default.send_redirects=0\n";
    run_with_input(
        &mut enter_network(state.space("wire")?, ["sysctl", "--quiet", "--load=-"]),
        settings.as_bytes(),
    )?;
    match state.topology {
        Topology::Narrow => narrow(state.space("wire")?),
        Topology::Nat => translate(state),
        _ => Ok(()),
    }
}

/// Says what is missing where the kernel does not know a type of device.
fn explain(error: Error, topology: Topology) -> Error {
    let (devices, module) = match topology {
        Topology::Vlan => ("VLAN devices", "8021q"),
        Topology::Bond => ("bonds", "bonding"),
        _ => return error,
    };
    if !format!("{error:#}").contains("Unknown device type") {
        return error;
    }
    anyhow!(
        "this kernel has no {devices} (module {module}), which this topology is made of; the kernel of \
         `cargo xtask vm -- COMMAND` has them"
    )
}

/// Prepares the router to carry less between nodes than between them and the client, whose packets have a
/// table of routes of their own. That a tunnelled packet is too big is reported to no one, as behind many
/// firewalls; the engines' own connections would stall without such reports.
fn narrow(wire: &SpaceRecord) -> Result<()> {
    let rule = format!("rule add iif client lookup {CLIENT}\n");
    run_with_input(&mut enter_network(wire, ["ip", "-batch", "-"]), rule.as_bytes())?;
    // The port is in the quoted UDP header: behind 8 bytes of ICMP and 20 of IP.
    let silence = "table ip silence { chain output { type filter hook output priority 0; \
                   icmp type destination-unreachable icmp code 4 @th,240,16 6081 drop; }; }";
    run_with_input(&mut enter_network(wire, ["nft", "-f", "-"]), silence.as_bytes())?;
    Ok(())
}

/// Makes the wire a router that knows each host by a second address, one for one, as clouds give them.
fn translate(state: &State) -> Result<()> {
    let subnet = state.subnet;
    let hosts = || (1..=u8::MAX).filter(|host| *host != ROUTER);
    let pairs = |from: fn(u8, u8) -> String, to: fn(u8, u8) -> String| {
        let pairs = hosts().map(|host| format!("{} : {}", from(subnet, host), to(subnet, host)));
        pairs.collect::<Vec<_>>().join(", ")
    };
    let own = |subnet, host| FIRST.address(subnet, host);
    let (inwards, outwards) = (pairs(translated_address, own), pairs(own, translated_address));
    let rules = format!(
        "table ip nat {{\n\
         chain in {{ type nat hook prerouting priority -100; dnat to ip daddr map {{ {inwards} }}; }}\n\
         chain out {{ type nat hook postrouting priority 100; ct status dnat snat to ip saddr map {{ {outwards} \
         }}; }}\n}}\n"
    );
    let wire = state.space("wire")?;
    run_with_input(&mut enter_network(wire, ["nft", "-f", "-"]), rules.as_bytes())?;
    Ok(())
}

/// Plugs a space into the wire: its end is `eth0` with the address 10.99.L.`host`, and further cards have
/// other networks' addresses.
///
/// # Errors
/// When the kernel refuses a veth or an off-load setting.
pub fn plug(state: &State, name: &str, host: u8, offloads: Offloads) -> Result<()> {
    for network in state.topology.networks() {
        plug_card(state, name, host, network, offloads)?;
    }
    let mut routes = format!("route add default via {}\n", FIRST.address(state.subnet, ROUTER));
    if state.topology.is_routed() {
        routes += &format!(
            "route add default via {}\n",
            FIRST.ipv6_address(state.subnet, ROUTER)
        );
    }
    if state.topology == Topology::Routed && name != "client" {
        let (client, router) = (CLIENT, ROUTER);
        for (client, router) in [
            (
                FIRST.address(state.subnet, client),
                SECOND.address(state.subnet, router),
            ),
            (
                FIRST.ipv6_address(state.subnet, client),
                SECOND.ipv6_address(state.subnet, router),
            ),
        ] {
            routes += &format!("route add {client} via {router}\n");
        }
    }
    run_with_input(
        &mut enter_network(state.space(name)?, ["ip", "-batch", "-"]),
        routes.as_bytes(),
    )?;
    give_more(state, name, host)
}

/// Gives a space the further addresses of the topology; the wire routes to those that no subnet has.
fn give_more(state: &State, name: &str, host: u8) -> Result<()> {
    let (mut inside, mut outside) = (String::new(), String::new());
    for more in state.topology.more() {
        let address = more.of(state.subnet, host);
        if name != "client" || more.is_of_a_subnet_of_its_own() {
            inside += &format!("address add {address}/{} dev {}\n", more.prefix, more.device);
        }
        if name != "client" && more.device == "lo" {
            outside += &format!("route add {address} via {}\n", FIRST.address(state.subnet, host));
        }
    }
    for (space, batch) in [(name, inside), ("wire", outside)] {
        run_with_input(
            &mut enter_network(state.space(space)?, ["ip", "-batch", "-"]),
            batch.as_bytes(),
        )?;
    }
    Ok(())
}

fn plug_card(state: &State, name: &str, host: u8, network: &Network, offloads: Offloads) -> Result<()> {
    let wire = state.space("wire")?;
    let space = state.space(name)?;
    let cards = state.topology.cards(name, network);
    // The pid is the host's: this `ip` keeps the host's pid namespace.
    let mut outside = String::new();
    for card in &cards {
        let port = port(name, card);
        outside += &format!(
            "link add {port} type veth peer name {card} netns {}\nlink set {port} up\n",
            space.init.pid
        );
        if !state.topology.is_routed() {
            outside += &format!("link set {port} master {}\n", network.bridge);
        }
    }
    let (address, router) = (
        network.address(state.subnet, host),
        network.address(state.subnet, ROUTER),
    );
    let (ipv6, ipv6_router) = (
        network.ipv6_address(state.subnet, host),
        network.ipv6_address(state.subnet, ROUTER),
    );
    let port = network.port(name);
    if state.topology.is_routed() {
        outside += &format!(
            "address add {router}/32 dev {port}\nroute add {address} dev {port} src {router}\n\
             address add {ipv6_router}/128 dev {port} nodad\nroute add {ipv6} dev {port}\n"
        );
    }
    if state.topology == Topology::Narrow && host != CLIENT {
        outside += &format!(
            "route change {address} dev {port} src {router} mtu lock {NARROW_MTU}\n\
             route add {address} dev {port} table {CLIENT}\n"
        );
    }
    run_with_input(
        &mut enter_network(wire, ["ip", "-batch", "-"]),
        outside.as_bytes(),
    )?;
    let (holder, mut inside) = holder(state.topology, name, network);
    if state.topology == Topology::SmallMtu && host != CLIENT {
        run(&mut enter_network(
            wire,
            ["ip", "link", "set", &port, "mtu", &SMALL_MTU.to_string()],
        ))?;
        inside += &format!("link set {} mtu {SMALL_MTU}\n", network.card);
    }
    inside += &if state.topology.is_routed() {
        format!(
            "address add {address}/32 dev {holder}\nroute add {router} dev {holder} scope link\n\
             address add {ipv6}/128 dev {holder} nodad\nroute add {ipv6_router} dev {holder}\n"
        )
    } else {
        // No other host has it: it need not be looked for before it is used.
        format!("address add {address}/24 dev {holder}\naddress add {ipv6}/64 dev {holder} nodad\n")
    };
    run_with_input(
        &mut enter_network(space, ["ip", "-batch", "-"]),
        inside.as_bytes(),
    )?;
    if offloads == Offloads::Off {
        // A real wire carries finished checksums, and takes what XDP sends at once.
        for card in cards {
            let port = self::port(name, card);
            for (space, device) in [(wire, port.as_str()), (space, card)] {
                run(&mut enter_network(space, ["ethtool", "-K", device, "tx", "off"]))?;
            }
            poll::pass_all(wire, &[&port])?;
        }
    }
    Ok(())
}

/// The device of a space that has its address in a network, and what makes it and sets it up.
fn holder(topology: Topology, name: &str, network: &Network) -> (&'static str, String) {
    let card = network.card;
    let up = format!("link set lo up\nlink set {card} up\n");
    let is_node = name.starts_with("node");
    if let Some((below, number)) = network.vlan() {
        (
            card,
            format!("link add link {below} name {card} type vlan id {number}\n{up}"),
        )
    } else if topology == Topology::Bridge && is_node {
        let bridge = "link add lan0 type bridge forward_delay 0 mcast_snooping 0";
        (
            "lan0",
            format!("{up}{bridge}\nlink set {card} master lan0\nlink set lan0 up\n"),
        )
    } else if topology == Topology::Bond && is_node {
        let mut bond = "link add bond0 type bond mode active-backup miimon 100\n".to_owned();
        // A bond takes only cards that are down, and sets them up.
        for card in topology.cards(name, network) {
            bond += &format!("link set {card} master bond0\n");
        }
        ("bond0", format!("link set lo up\n{bond}link set bond0 up\n"))
    } else {
        (card, up)
    }
}

impl Lab {
    /// Cuts a node off from all others and the client. Its own end of the wire stays up, so that
    /// it sees no link failure.
    ///
    /// # Errors
    /// When there is no such node, it has a cable to a router, or the kernel refuses.
    pub fn cut_off(&self, name: &str) -> Result<()> {
        ensure!(
            !self.state.topology.is_routed(),
            "{name} is connected to a router, which would notice; use a lab with bridges"
        );
        for network in self.state.topology.networks() {
            set_ports(&self.state, name, network, &["nomaster"])?;
        }
        Ok(())
    }

    /// Connects a node again that was cut off.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn reconnect(&self, name: &str) -> Result<()> {
        for network in self.state.topology.networks() {
            set_ports(&self.state, name, network, &["master", network.bridge])?;
        }
        Ok(())
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

fn set_ports(state: &State, name: &str, network: &Network, arguments: &[&str]) -> Result<()> {
    // Its devices at the wire have its name.
    state.space(name)?;
    let wire = state.space("wire")?;
    for card in state.topology.cards(name, network) {
        run(enter_network(wire, ["ip", "link", "set", "dev", &port(name, card)]).args(arguments))?;
    }
    Ok(())
}
