//! Whether the kernel forwards IPv4 on interfaces of the node: where it does not, it names programs no way
//! for the packets that come in there, so that answers to clients are dropped (`no_route`).

use std::{collections::BTreeSet, fs, path::Path};

use crate::host_facts::interface_name;

/// Those of the interfaces on which it does not, by name. `sysctls` is the folder of the kernel's settings.
/// An interface without settings does not count: it may be gone, or its settings cannot be seen here.
pub fn not_forwarding(
    sysctls: &Path,
    uplinks: impl Iterator<Item = String>,
    containers: &BTreeSet<u32>,
) -> BTreeSet<String> {
    let containers = containers.iter().filter_map(|index| interface_name(*index).ok());
    let conf = sysctls.join("net/ipv4/conf");
    uplinks
        .chain(containers)
        .filter(|name| {
            let value = fs::read_to_string(conf.join(name).join("forwarding"));
            value.is_ok_and(|value| value.trim() == "0")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::discovery::own_network::{in_namespace, ip};

    #[test]
    fn uplinks_and_containers_interfaces_that_do_not_forward_are_named() {
        in_namespace(|| async {
            for name in ["eth0", "eth1", "veth0", "veth1"] {
                ip(&format!("link add {name} type bridge"));
            }
            let set = |name: &str, value: &str| {
                fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), value).unwrap();
            };
            set("all", "1");
            let containers = ["veth0", "veth1"].map(|name| if_nametoindex(name).unwrap());
            let found = || {
                let uplinks = ["eth0", "eth1", "gone"].map(str::to_owned).into_iter();
                let found = not_forwarding(Path::new("/proc/sys"), uplinks, &containers.into());
                found.into_iter().collect::<Vec<_>>().join(" ")
            };
            assert_eq!(found(), "");
            set("eth1", "0");
            set("veth0", "0");
            assert_eq!(found(), "eth1 veth0");
            set("all", "0");
            assert_eq!(found(), "eth0 eth1 veth0 veth1");
        });
    }
}
