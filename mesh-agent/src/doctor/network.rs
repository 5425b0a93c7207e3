//! Finds out whether IPv6 clients, which the mesh does not balance, can reach this node. Reads its addresses
//! and routes.

use std::{collections::BTreeSet, fs, net::Ipv6Addr};

use nix::ifaddrs::getifaddrs;

/// The main table of IPv4 routes; addresses in it are hexadecimal.
const ROUTES: &str = "/proc/net/route";
const ANYWHERE: &str = "00000000";

/// A sentence saying that IPv6 clients are not balanced, if any can reach an uplink. An empty `uplinks` stands
/// for the interfaces that an agent would choose.
pub(super) fn limit(mut uplinks: BTreeSet<String>) -> Option<String> {
    if uplinks.is_empty() {
        uplinks = default_interfaces(&fs::read_to_string(ROUTES).unwrap_or_default());
    }
    let addresses = getifaddrs().into_iter().flatten().filter_map(|found| {
        let address = found.address?.as_sockaddr_in6()?.ip();
        Some((found.interface_name, address))
    });
    sentence(addresses, &uplinks)
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

/// The interfaces of the default routes in the kernel's list of routes.
fn default_interfaces(routes: &str) -> BTreeSet<String> {
    routes
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let interface = fields.next()?;
            let destination = fields.next()?;
            // Skips gateway, flags, references, uses and metric.
            let mask = fields.nth(5)?;
            (destination == ANYWHERE && mask == ANYWHERE).then(|| interface.to_owned())
        })
        .collect()
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
    fn nothing_is_reported_without_a_global_ipv6_address_on_an_uplink() {
        assert_eq!(limit_of(&[]), None);
        assert_eq!(limit_of(&[("lo", "::1"), ("eth0", "fe80::1")]), None);
        assert_eq!(limit_of(&[("docker0", "2001:db8::7")]), None, "not an uplink");
    }

    #[test]
    fn without_an_agent_the_interfaces_of_default_routes_count_as_uplinks() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0102000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
                      docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(default_interfaces(routes), BTreeSet::from(["eth0".to_owned()]));
        assert_eq!(default_interfaces(""), BTreeSet::new());
    }
}
