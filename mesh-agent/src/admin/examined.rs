//! What the doctor gets to know of the running agent: computed from a view of it. Pure.

use std::net::Ipv4Addr;

use super::{
    View,
    access::unknown_interfaces,
    firewall::inexpressible_rules,
    forwarding::forwarding_line,
    health::{failing_lines, out_of_reach_lines},
    labels::ignored_labels,
    limits::limit_lines,
    ports::port_lines,
    status::missing_hooks,
};
use crate::{
    datapath::Mode,
    doctor::{PeerFacts, Running},
};

pub(super) fn running(view: &View) -> Running {
    let refused = |uplink: &String| {
        let mut modes = view.modes.iter();
        modes.any(|mode| mode.interface == *uplink && mode.mode == Mode::None)
    };
    let uplinks = view.desired.uplinks.keys();
    let peers = view.source.cluster.nodes.iter();
    Running {
        interfaces: view.modes.clone(),
        datapath: view.datapath_status.clone(),
        node_address: view.desired.settings.node_address,
        uplinks: uplinks.filter(|uplink| !refused(uplink)).cloned().collect(),
        missing_hooks: missing_hooks(view),
        peers: peers
            .filter(|(id, _)| **id != view.node)
            .map(|(_, node)| PeerFacts {
                hostname: node.hostname.clone(),
                address: node.address,
                ready: node.ready,
                datapath: node.datapath,
                release: node.release.clone(),
                probes: view.probes.peers.get(&node.address).copied(),
                path_mtu: view.probes.path_mtus().get(&node.address).copied().map(u32::from),
                uplink: uplink_to(view, node.address),
            })
            .collect(),
        ipv6_left: view.ipv6_left.clone(),
        probe_trouble: view.probes.trouble.clone(),
        problems: view
            .datapath_errors
            .iter()
            .cloned()
            .chain(forwarding_line(view))
            .chain(failing_lines(view))
            .chain(out_of_reach_lines(view))
            .chain(limit_lines(view))
            .chain(inexpressible_rules(view))
            .chain(unknown_interfaces(view))
            .chain(ignored_labels(view))
            .chain(port_lines(view))
            .collect(),
    }
}

/// The uplink that leads to a peer, and its MTU.
fn uplink_to(view: &View, peer: Ipv4Addr) -> Option<(String, u32)> {
    let next_hop = view.desired.peers.get(&peer)?.as_ref()?;
    let mut uplinks = view.desired.uplinks.iter();
    let (name, uplink) = uplinks.find(|(_, uplink)| uplink.index == next_hop.interface)?;
    Some((name.clone(), uplink.mtu))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::view::fixture,
        datapath::InterfaceMode,
        model::{HostInterface, MacAddress},
    };

    #[test]
    fn the_doctor_knows_each_peer_and_the_uplinks_that_have_hooks() {
        let (mut view, _) = fixture::two_nodes();
        let mut desired = (*view.desired).clone();
        let uplink = HostInterface {
            index: 2,
            mac: Some(MacAddress::default()),
            mtu: 1500,
            has_vlans: false,
        };
        for name in ["eth0", "eth1"] {
            desired.uplinks.insert(name.to_owned(), uplink);
        }
        view.desired = desired.into();
        view.modes.push(InterfaceMode {
            interface: "eth1".to_owned(),
            mode: Mode::None,
            reason: "busy".to_owned(),
        });
        let running = running(&view);
        assert_eq!(running.uplinks, ["eth0".to_owned()].into());
        assert_eq!(running.node_address, Some([192, 168, 0, 1].into()));
        let peers: Vec<_> = running
            .peers
            .iter()
            .map(|peer| {
                (
                    peer.hostname.as_str(),
                    peer.probes.and_then(|probes| probes.answers),
                )
            })
            .collect();
        assert_eq!(peers, [("n2", Some(true)), ("n3", Some(false))]);
        // Only the third node's next hop is known, and only the second one's path has been measured.
        let sizes: Vec<_> = running
            .peers
            .iter()
            .map(|peer| (peer.path_mtu, &peer.uplink))
            .collect();
        let uplink = Some(("eth0".to_owned(), 1500));
        assert_eq!(sizes, [(Some(1400), &None), (None, &uplink)]);
    }
}
