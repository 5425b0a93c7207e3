//! Checks of what the IPVS data path needs, made by that data path's own code in a temporary network
//! namespace. The kernel loads the modules on demand.

use std::{collections::BTreeSet, net::Ipv4Addr};

use mesh_support::{error_chain, namespace::in_new_network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{Check, Outcome};
use crate::{
    datapath::{
        ipvs::{
            IpvsOptions,
            kernel::{Command, Ipvs, SchedulerFlags, Settings, VirtualService},
            rules::{Rules, Table},
            tunnel::{Tunnel, TunnelPlan},
        },
        netlink::{Connection, Message, NetlinkError},
    },
    model::{Algorithm, Protocol},
};

const NETLINK_ROUTE: isize = libc::NETLINK_ROUTE as isize;
/// A documentation address (RFC 5737), unused on any network.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Every check of what IPVS depends on.
pub(super) async fn checks() -> Vec<Check> {
    match tokio::task::spawn_blocking(|| in_new_network(probe)).await {
        Ok(Ok(checks)) => checks,
        Ok(Err(error)) => vec![Check::fail(
            "IPVS",
            format!("cannot create a network namespace to test it in: {error}"),
            "run as root with CAP_SYS_ADMIN, and allow the unshare system call",
        )],
        Err(_) => vec![Check::fail(
            "IPVS",
            "the check failed before it finished",
            "this is a bug, please report it",
        )],
    }
}

fn probe() -> Vec<Check> {
    let mut checks = match Ipvs::open() {
        Ok(ipvs) => {
            let mut checks = vec![Check::ok("IPVS", "the kernel supports it")];
            checks.push(schedulers(ipvs));
            checks
        }
        Err(error) => vec![Check::fail(
            "IPVS",
            error_chain(&error),
            "modprobe ip_vs; if the kernel has no such module, boot one with CONFIG_IP_VS, CONFIG_IP_VS_NFCT, \
             CONFIG_IP_VS_PROTO_TCP and CONFIG_IP_VS_PROTO_UDP",
        )],
    };
    let tunnel = tunnel();
    // The rules refer to the tunnel's device.
    let has_tunnel = tunnel.outcome == Outcome::Ok;
    checks.push(tunnel);
    if has_tunnel {
        checks.push(rules());
    }
    checks
}

/// Which IPVS schedulers the kernel has.
fn schedulers(mut ipvs: Ipvs) -> Check {
    let name = "IPVS schedulers";
    let algorithms = || {
        Algorithm::ALL
            .into_iter()
            .filter(|known| known.in_ipvs() == *known)
    };
    let commands: Vec<Command> = algorithms()
        .zip(1..)
        .map(|(algorithm, port)| {
            let service = VirtualService {
                address: ADDRESS.into(),
                port,
                protocol: Protocol::Tcp,
            };
            let settings = Settings {
                scheduler: algorithm.name().to_owned(),
                flags: SchedulerFlags::default(),
                persistence: None,
            };
            Command::NewService(service, settings)
        })
        .collect();
    let results = match ipvs.apply(&commands) {
        Ok(results) => results,
        Err(error) => return Check::fail(name, error_chain(&error), "see the check 'IPVS'"),
    };
    let refused: Vec<_> = algorithms()
        .zip(results)
        .filter_map(|(algorithm, result)| Some((algorithm.name(), result.err()?)))
        .collect();
    if refused.is_empty() {
        let names: Vec<_> = algorithms().map(Algorithm::name).collect();
        return Check::ok(name, names.join(", "));
    }
    let reasons: Vec<_> = refused
        .iter()
        .map(|(name, error)| format!("{name}: {error}"))
        .collect();
    let modules: Vec<_> = refused
        .iter()
        .map(|(name, _)| format!("modprobe ip_vs_{name}"))
        .collect();
    let check = Check::fail(name, reasons.join("; "), modules.join("; "));
    if refused
        .iter()
        .any(|(name, _)| *name == Algorithm::default().name())
    {
        return check;
    }
    Check {
        outcome: Outcome::Warn,
        ..check
    }
}

/// The VXLAN device between nodes, attached to a bridge such as Docker's.
fn tunnel() -> Check {
    let name = "VXLAN on a bridge";
    let options = IpvsOptions::default();
    let attempt = || -> Result<(), Box<dyn std::error::Error>> {
        make_bridge(&options.bridge)?;
        Tunnel::new()?.apply(&TunnelPlan {
            bridge: options.bridge.clone(),
            vni: 1,
            port: options.tunnel_port,
            node_address: ADDRESS,
            peers: BTreeSet::new(),
            remote: Default::default(),
            local: BTreeSet::new(),
        })?;
        Ok(())
    };
    match attempt() {
        Ok(()) => Check::ok(name, "nodes on IPVS can reach each other's replicas"),
        Err(error) => Check::fail(
            name,
            error_chain(error.as_ref()),
            "modprobe vxlan; modprobe bridge; if the kernel has no such modules, boot one with CONFIG_VXLAN and \
             CONFIG_BRIDGE",
        ),
    }
}

fn make_bridge(name: &str) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    Connection::open(NETLINK_ROUTE)?.request(&Message::encode(
        &RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    ))
}

/// The nftables rules that IPVS relies on, with one port as an example.
fn rules() -> Check {
    let name = "nftables";
    let options = IpvsOptions::default();
    let rules = Rules {
        node_address: Some(ADDRESS),
        bridge: options.bridge,
        tunnel_port: options.tunnel_port,
        uplink_mtu: 1500,
        frontends: BTreeSet::from([(ADDRESS, Protocol::Tcp, 9)]),
        ..Rules::default()
    };
    match Table::open().and_then(|mut table| table.apply(&rules)) {
        Ok(()) => Check::ok(name, "the kernel accepts the rules that IPVS relies on"),
        Err(error) => Check::fail(
            name,
            error_chain(&error),
            "modprobe nf_tables; if the kernel has no such module, boot one with CONFIG_NF_TABLES, \
             CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN and CONFIG_NFT_CT",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root.
    #[tokio::test]
    async fn the_checks_leave_their_own_namespace_unchanged() {
        let before = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let names = |text: &str| text.lines().filter_map(|line| line.split(':').next()).count();
        let checks = checks().await;
        assert_eq!(checks[0].name, "IPVS");
        let after = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert_eq!(names(&before), names(&after), "{after}");
        for check in &checks {
            assert_eq!(check.remedy.is_empty(), check.outcome == Outcome::Ok, "{check:?}");
        }
    }
}
