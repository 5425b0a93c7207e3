//! Checks whether an interface still follows IPv6 routers: with forwarding on, which containers with IPv6
//! need, the kernel ignores router advertisements unless it is asked not to. Reads `/proc`.

use std::{collections::BTreeSet, fs, path::Path};

use super::Check;

const NAME: &str = "IPv6 router advertisements";

/// Bit of an address's flags: it has no end of life (`linux/if_addr.h`, `IFA_F_PERMANENT`). What a router's
/// advertisement has given has one.
const PERMANENT: u32 = 0x80;

/// Bits of a route's flags: a default one, of a router's advertisement (`linux/ipv6_route.h`).
const DEFAULT_OF_ROUTER: u32 = 0x0005_0000;

/// A warning about the interfaces whose addresses or default route will expire; nothing where none is.
pub(super) fn check(interfaces: &BTreeSet<String>) -> Option<Check> {
    let addresses = fs::read_to_string("/proc/net/if_inet6").ok()?;
    let setting = |interface: &str, name: &str| {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(interface).join(name);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let mut advertised = advertised(&addresses);
    advertised.extend(routed(
        &fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default(),
    ));
    warning(interfaces.intersection(&advertised), setting)
}

/// The interfaces with a global address that will expire unless a router goes on advertising it, from the
/// kernel's table: address, index, prefix length, scope, flags and name.
fn advertised(addresses: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let mut fields = line.split_whitespace().skip(3);
        let scope = u32::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        (scope == 0 && flags & PERMANENT == 0).then(|| fields.next().map(str::to_owned))?
    };
    addresses.lines().filter_map(interface).collect()
}

/// The interfaces with a default route that a router advertises, from the kernel's table: destination and
/// source with the lengths of their prefixes, next hop, metric, two counts, flags and name.
fn routed(routes: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let mut fields = line.split_whitespace().skip(8);
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        (flags & DEFAULT_OF_ROUTER == DEFAULT_OF_ROUTER).then(|| fields.next().map(str::to_owned))?
    };
    routes.lines().filter_map(interface).collect()
}

fn warning<'a>(
    interfaces: impl Iterator<Item = &'a String>,
    setting: impl Fn(&str, &str) -> Option<u32>,
) -> Option<Check> {
    let ignoring: Vec<_> = interfaces
        .filter(|interface| {
            // 0: a program follows the routers (systemd-networkd, NetworkManager). 2: the kernel does, also
            // while it forwards.
            setting(interface, "accept_ra") == Some(1) && setting(interface, "forwarding") != Some(0)
        })
        .map(String::as_str)
        .collect();
    (!ignoring.is_empty()).then(|| {
        let remedy = ignoring
            .iter()
            .map(|interface| format!("sysctl -w net.ipv6.conf.{interface}.accept_ra=2"));
        Check::warn(
            NAME,
            format!(
                "{} has an address or its default route from a router, but no longer follows it, because IPv6 \
                 forwarding is on: both expire",
                ignoring.join(", ")
            ),
            format!(
                "{} (and the same in /etc/sysctl.d)",
                remedy.collect::<Vec<_>>().join("; ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_with_addresses_of_routers_are_found() {
        // A router's, its link-local one, one by hand, and the loopback device's.
        let table = "20010db8000000000000000000000007 02 40 00 00     eth0\n\
                     fe800000000000000000000000000007 02 40 20 80     eth0\n\
                     20010db8000100000000000000000007 03 40 00 80     eth1\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n\
                     a line of a later kernel\n";
        assert_eq!(advertised(table), BTreeSet::from(["eth0".to_owned()]));
    }

    #[test]
    fn interfaces_with_default_routes_of_routers_are_found() {
        // A router's, one by hand, and a network that a router has advertised.
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n\
                     00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth1\n\
                     20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
                     00000000000000000000000000000000 00000100 00000001 00000000 00040001     eth2\n";
        assert_eq!(routed(table), BTreeSet::from(["eth0".to_owned()]));
    }

    #[test]
    fn forwarding_without_accept_ra_2_is_a_warning_with_the_command() {
        let check = |accept_ra: u32, forwarding: u32| {
            let setting = |_: &str, name: &str| {
                Some(if name == "accept_ra" {
                    accept_ra
                } else {
                    forwarding
                })
            };
            warning(["eth0".to_owned()].iter(), setting)
        };
        let warning = check(1, 1).unwrap();
        assert_eq!(warning.outcome, super::super::Outcome::Warn);
        assert!(warning.remedy.contains("net.ipv6.conf.eth0.accept_ra=2"));
        for (accept_ra, forwarding) in [(0, 1), (2, 1), (1, 0)] {
            assert_eq!(check(accept_ra, forwarding), None, "{accept_ra} {forwarding}");
        }
    }
}
