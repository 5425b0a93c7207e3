//! Finds out whether IPv6 clients, which the mesh does not balance, can reach this node. Reads its addresses
//! and routes.

use std::{collections::BTreeSet, net::Ipv6Addr};

use nix::ifaddrs::getifaddrs;

use super::Check;
use crate::discovery::default_route_interfaces;

/// A sentence saying that IPv6 clients are not balanced, if any can reach an uplink. If `uplinks` is
/// empty, the interfaces of default routes count, as an agent would choose them.
pub(super) fn limit(mut uplinks: BTreeSet<String>) -> Option<String> {
    if uplinks.is_empty() {
        uplinks = default_route_interfaces().unwrap_or_default();
    }
    let addresses = getifaddrs().into_iter().flatten().filter_map(|found| {
        let address = found.address?.as_sockaddr_in6()?.ip();
        Some((found.interface_name, address))
    });
    sentence(addresses, &uplinks)
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

fn sentence(
    mut addresses: impl Iterator<Item = (String, Ipv6Addr)>,
    uplinks: &BTreeSet<String>,
) -> Option<String> {
    let (interface, address) =
        addresses.find(|(interface, address)| uplinks.contains(interface) && is_global(*address))?;
    Some(format!(
        "Limit: IPv6 clients (this node has {address} on {interface}) are not balanced, because replicas have IPv4 \
         addresses only."
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
        sentence(addresses, &BTreeSet::from(["eth0".to_owned()]))
    }

    #[test]
    fn an_uplink_with_a_global_ipv6_address_is_reported() {
        for address in ["2001:db8::7", "fd00::7"] {
            let text = limit_of(&[("lo", "::1"), ("eth0", "fe80::1"), ("eth0", address)]).unwrap();
            assert!(text.contains(&format!("{address} on eth0")), "{text}");
            assert!(text.contains("IPv4 addresses only"), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
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
