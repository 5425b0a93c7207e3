//! Judges the sizes of packets that reach the other nodes, as the running agent's probes have found them.
//! Pure.

use super::{
    Check, PeerFacts,
    peers::{count, listed},
};

/// What the tunnel adds to a client's packet.
const TUNNEL: u32 = 56;

/// Whether each peer is reached by packets as large as those that the uplink towards it carries.
pub(super) fn path_mtu(peers: &[PeerFacts]) -> Option<Check> {
    const NAME: &str = "path MTU to other nodes";
    let measured: Vec<_> = peers
        .iter()
        .filter_map(|peer| Some((peer, peer.path_mtu?, peer.uplink.as_ref()?)))
        .collect();
    let narrow: Vec<_> = measured
        .iter()
        .filter(|(_, bytes, (_, promised))| bytes < promised)
        .collect();
    let Some(smallest) = narrow.iter().map(|(_, bytes, _)| *bytes).min() else {
        let least = measured.iter().map(|(_, bytes, _)| *bytes).min()?;
        return Some(Check::ok(
            NAME,
            format!(
                "packets of {least} bytes or more, all that the uplinks carry, reach {}",
                count(measured.len())
            ),
        ));
    };
    let lines: Vec<_> = narrow
        .iter()
        .map(|(peer, bytes, (uplink, promised))| {
            let PeerFacts {
                hostname, address, ..
            } = peer;
            format!("{bytes} of the {promised} bytes of {uplink} reach {hostname} ({address})")
        })
        .collect();
    let inner = smallest.saturating_sub(TUNNEL);
    Some(Check::warn(
        NAME,
        format!(
            "{}; the mesh keeps to it: TCP gets smaller segments, and larger packets of clients (down to {inner} \
             bytes) are answered with ICMP \"fragmentation needed\"",
            listed(&lines)
        ),
        format!(
            "UDP clients that ignore ICMP lose packets of more than {inner} bytes: raise the MTU of what is between the \
             nodes (a router, a VPN, the provider's network), or tell all machines by setting the uplinks' MTU to \
             {smallest}"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{doctor::Outcome, model::NodeDatapath};

    fn peer(last: u8, path_mtu: Option<u32>) -> PeerFacts {
        PeerFacts {
            hostname: format!("n{last}"),
            address: Ipv4Addr::new(192, 0, 2, last),
            ready: true,
            datapath: NodeDatapath::Ebpf,
            release: String::new(),
            probes: None,
            path_mtu,
            uplink: Some(("eth0".to_owned(), 1500)),
        }
    }

    #[test]
    fn a_path_that_carries_what_the_uplink_promises_is_fine() {
        let check = path_mtu(&[peer(2, Some(1500)), peer(3, Some(1500)), peer(4, None)]).unwrap();
        assert_eq!(check.outcome, Outcome::Ok);
        assert!(
            check.detail.contains("1500 bytes") && check.detail.contains("all 2 other nodes"),
            "{check:?}"
        );
    }

    #[test]
    fn a_path_that_carries_less_is_named_with_its_cost_and_a_remedy() {
        let check = path_mtu(&[peer(2, Some(1500)), peer(3, Some(1400))]).unwrap();
        assert_eq!(check.outcome, Outcome::Warn);
        assert!(
            check
                .detail
                .starts_with("1400 of the 1500 bytes of eth0 reach n3 (192.0.2.3); "),
            "{check:?}"
        );
        assert!(check.detail.contains("down to 1344 bytes") && check.remedy.contains("MTU to 1400"));
    }

    #[test]
    fn nothing_is_judged_before_it_is_measured() {
        assert_eq!(path_mtu(&[]), None);
        let unknown = PeerFacts {
            uplink: None,
            ..peer(2, Some(1400))
        };
        assert_eq!(path_mtu(&[peer(3, None), unknown]), None);
    }
}
