//! Checks this node's interfaces: which one carries its address, which lack a hook, and whether IPv6 clients
//! that the mesh does not balance can reach it. Reads its addresses and routes.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use nix::ifaddrs::getifaddrs;

use super::Check;
use crate::{
    discovery::{bridges, default_route_interfaces, host_firewall::ipv6::ipv6_rules},
    mesh0,
};

/// Why an agent would not serve IPv6 here, unless its setting says otherwise.
pub(super) fn ipv6_left(on_ipvs: bool) -> Option<String> {
    if on_ipvs {
        return Some("this node's data path would be IPVS".to_owned());
    }
    match ipv6_rules() {
        Ok(rules) => rules.reason_to_leave(),
        Err(trouble) => Some(trouble),
    }
}

/// A sentence saying that IPv6 clients are not balanced, and why, if any can reach an uplink. If `uplinks` is
/// empty, the interfaces of default routes count, as an agent would choose them.
pub(super) fn limit(mut uplinks: BTreeSet<String>, reason: &str) -> Option<String> {
    if uplinks.is_empty() {
        uplinks = default_route_interfaces().unwrap_or_default();
    }
    let addresses = getifaddrs().into_iter().flatten().filter_map(|found| {
        let address = found.address?.as_sockaddr_in6()?.ip();
        Some((found.interface_name, address))
    });
    sentence(addresses, &uplinks, reason)
}

/// A sentence that names the addresses at which the mesh sees no clients, if there are any: those of
/// interfaces that are no uplinks, and no bridges, which are containers'.
pub(super) fn unseen(uplinks: &BTreeSet<String>) -> Option<String> {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|found| {
        let address = found.address?.as_sockaddr_in()?.ip();
        Some((found.interface_name, address))
    });
    unseen_of(addresses, uplinks, &bridges().ok()?)
}

fn unseen_of(
    addresses: impl Iterator<Item = (String, Ipv4Addr)>,
    uplinks: &BTreeSet<String>,
    bridges: &BTreeSet<String>,
) -> Option<String> {
    let unseen: Vec<_> = addresses
        .filter(|(name, address)| {
            let known = uplinks.contains(name) || mesh0::is_ours(name) || bridges.contains(name);
            !(known || address.is_loopback() || name == "lo")
        })
        .map(|(name, address)| format!("{address} on {name}"))
        .collect();
    (!unseen.is_empty()).then(|| {
        format!(
            "Limit: what clients send to {} is left to Docker: those interfaces carry neither a default route nor a way \
             to other nodes. --uplink names more interfaces.",
            unseen.join(", ")
        )
    })
}

/// Whether the agent has a hook on every interface that leads to another node.
pub(super) fn hooks(missing: &[String]) -> Check {
    const NAME: &str = "ways to other nodes";
    if missing.is_empty() {
        return Check::ok(NAME, "every known route to another node leaves by an uplink");
    }
    Check::warn(
        NAME,
        missing.join("; "),
        "let the nodes reach each other by Ethernet interfaces, VLANs, bonds or bridges (docker swarm join \
         --advertise-addr), or free the interface's hook",
    )
}

/// Whether an interface that the mesh sees carries the address that peers send to. `uplinks` is `None` if no
/// agent has chosen any.
pub(super) fn node_address(address: Ipv4Addr, uplinks: Option<&BTreeSet<String>>) -> Check {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|found| {
        let address = found.address?.as_sockaddr_in()?.ip();
        Some((found.interface_name, address))
    });
    carrier(address, &addresses.collect::<Vec<_>>(), uplinks)
}

fn carrier(address: Ipv4Addr, addresses: &[(String, Ipv4Addr)], uplinks: Option<&BTreeSet<String>>) -> Check {
    const NAME: &str = "address of this node";
    let found = addresses.iter().find(|(_, carried)| *carried == address);
    match (found, uplinks) {
        (Some((interface, _)), Some(uplinks)) if !uplinks.contains(interface) => Check::warn(
            NAME,
            format!(
                "{address}, which other nodes send to, is on {interface}, which is not an uplink: the mesh does not see \
                 packets that arrive there"
            ),
            format!(
                "start the agent with --uplink {interface}, and see why it was not chosen in the table below"
            ),
        ),
        (Some((interface, _)), uplinks) => Check::ok(
            NAME,
            format!(
                "{address} is on {interface}{}",
                if uplinks.is_some() { ", an uplink" } else { "" }
            ),
        ),
        (None, _) => {
            let own: Vec<_> = addresses
                .iter()
                .filter(|(_, carried)| !carried.is_loopback())
                .map(|(interface, carried)| format!("{carried} on {interface}"))
                .collect();
            Check::warn(
                NAME,
                format!(
                    "{address}, which other nodes send to, is on none of this node's interfaces ({}): their packets get \
                     here only if something on the way translates it",
                    own.join(", ")
                ),
                "if the address has changed, let the node leave the Swarm and join it with --advertise-addr; behind \
                 NAT, pass an address that other nodes reach as --data-path-address",
            )
        }
    }
}

fn sentence(
    mut addresses: impl Iterator<Item = (String, Ipv6Addr)>,
    uplinks: &BTreeSet<String>,
    reason: &str,
) -> Option<String> {
    let (interface, address) =
        addresses.find(|(interface, address)| uplinks.contains(interface) && is_global(*address))?;
    Some(format!(
        "Limit: IPv6 clients (this node has {address} on {interface}) are not balanced: {reason}."
    ))
}

/// Global in the kernel's sense: usable beyond the link.
fn is_global(address: Ipv6Addr) -> bool {
    !(address.is_unicast_link_local()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(addresses: &[(&str, &str)]) -> Option<String> {
        let addresses = addresses
            .iter()
            .map(|(interface, address)| ((*interface).to_owned(), address.parse().unwrap()));
        sentence(addresses, &BTreeSet::from(["eth0".to_owned()]), "it is off")
    }

    #[test]
    fn an_uplink_with_a_global_ipv6_address_is_reported() {
        for address in ["2001:db8::7", "fd00::7"] {
            let text = limit_of(&[("lo", "::1"), ("eth0", "fe80::1"), ("eth0", address)]).unwrap();
            assert!(text.contains(&format!("{address} on eth0")), "{text}");
            assert!(text.ends_with("are not balanced: it is off."), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn the_interface_that_carries_the_nodes_address_must_be_an_uplink() {
        let address = |last| Ipv4Addr::new(192, 0, 2, last);
        let addresses = [
            ("lo".to_owned(), Ipv4Addr::LOCALHOST),
            ("eth0".to_owned(), address(1)),
            ("eth1".to_owned(), address(2)),
        ];
        let uplinks = BTreeSet::from(["eth0".to_owned()]);
        let check = |last| carrier(address(last), &addresses, Some(&uplinks));
        assert_eq!(check(1).outcome, super::super::Outcome::Ok);
        assert_eq!(check(1).detail, "192.0.2.1 is on eth0, an uplink");
        assert_eq!(check(2).outcome, super::super::Outcome::Warn);
        assert!(check(2).remedy.contains("--uplink eth1"), "{:?}", check(2));
        assert_eq!(check(3).outcome, super::super::Outcome::Warn);
        assert!(
            check(3).detail.contains("(192.0.2.1 on eth0, 192.0.2.2 on eth1)"),
            "{:?}",
            check(3)
        );
        let unknown = carrier(address(2), &addresses, None);
        assert_eq!(
            unknown.outcome,
            super::super::Outcome::Ok,
            "no agent has chosen uplinks"
        );
    }

    #[test]
    fn addresses_of_other_interfaces_than_uplinks_and_bridges_are_named() {
        let addresses = [
            ("lo", [127, 0, 0, 1]),
            ("lo", [192, 0, 2, 9]),
            ("eth0", [192, 0, 2, 1]),
            ("docker0", [172, 17, 0, 1]),
            ("mesh0", [169, 254, 96, 2]),
            ("eth1", [198, 51, 100, 1]),
        ];
        let text = |uplinks: &[&str]| {
            let addresses = addresses
                .iter()
                .map(|(name, address)| ((*name).to_owned(), Ipv4Addr::from(*address)));
            let uplinks = uplinks.iter().map(|name| (*name).to_owned()).collect();
            unseen_of(addresses, &uplinks, &["docker0".to_owned()].into())
        };
        let named = text(&["eth0"]).unwrap();
        assert!(named.contains("to 198.51.100.1 on eth1 is left"), "{named}");
        assert_eq!(text(&["eth0", "eth1"]), None);
    }

    #[test]
    fn a_missing_hook_is_a_warning_with_a_remedy() {
        let check = hooks(&["no hook on wg0".to_owned()]);
        assert_eq!(check.outcome, super::super::Outcome::Warn);
        assert!(check.detail.contains("wg0") && !check.remedy.is_empty());
        assert_eq!(hooks(&[]).outcome, super::super::Outcome::Ok);
    }

    #[test]
    fn nothing_is_reported_without_a_global_ipv6_address_on_an_uplink() {
        assert_eq!(limit_of(&[]), None);
        assert_eq!(limit_of(&[("lo", "::1"), ("eth0", "fe80::1")]), None);
        assert_eq!(limit_of(&[("docker0", "2001:db8::7")]), None, "not an uplink");
    }
}
