//! Judges what the running agent knows of the other nodes: their agents, their releases, and whether their
//! data paths answer. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::SystemTime,
};

use super::{Check, Outcome};
use crate::{datapath::DatapathKind, first_few::first_few, model::NodeDatapath, probes::PeerLiveness};

/// A list of nodes names so many.
const NAMED: usize = 8;

/// Another node, as the running agent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its host name.
    pub hostname: String,
    /// Where its packets are sent.
    pub address: Ipv4Addr,
    /// Whether the managers consider it ready.
    pub ready: bool,
    /// Its announced data path.
    pub datapath: NodeDatapath,
    /// The release of its agent; empty if it has not announced one.
    pub release: String,
    /// What the probes of its data path have found; `None` if it is not probed.
    pub probes: Option<PeerLiveness>,
    /// The largest packet that reaches it, bytes from the outer IP header on; `None` while that is not known.
    pub path_mtu: Option<u32>,
    /// The uplink that leads to it, and the MTU of that; `None` while the next hop is not known.
    pub uplink: Option<(String, u32)>,
}

impl PeerFacts {
    fn has_datapath(&self) -> bool {
        match self.datapath {
            NodeDatapath::Ebpf | NodeDatapath::Ipvs | NodeDatapath::Leaving => true,
            NodeDatapath::None | NodeDatapath::Unknown => false,
        }
    }
}

/// Whether every ready node announces a data path of this node's kind.
pub(super) fn announcements(own: DatapathKind, peers: &[PeerFacts]) -> Option<Check> {
    const NAME: &str = "agents of other nodes";
    let ready: Vec<_> = peers.iter().filter(|peer| peer.ready).collect();
    if ready.is_empty() {
        return None;
    }
    let with = |matches: &dyn Fn(NodeDatapath) -> bool| {
        let matching = ready.iter().filter(|peer| matches(peer.datapath));
        matching.map(|peer| peer.hostname.clone()).collect::<Vec<_>>()
    };
    let found = [
        (
            with(&|datapath| datapath == NodeDatapath::Unknown),
            "no announcement from",
        ),
        (
            with(&|datapath| datapath == NodeDatapath::None),
            "no data path on",
        ),
        (
            with(&|datapath| match datapath {
                NodeDatapath::Ebpf => own != DatapathKind::Ebpf,
                NodeDatapath::Ipvs => own != DatapathKind::Ipvs,
                NodeDatapath::None | NodeDatapath::Leaving | NodeDatapath::Unknown => false,
            }),
            "another kind of data path on",
        ),
    ];
    let problems: Vec<_> = found
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, what)| format!("{what} {}", listed(names)))
        .collect();
    if problems.is_empty() {
        return Some(Check::ok(
            NAME,
            format!("{} announce a data path of this node's kind", count(ready.len())),
        ));
    }
    Some(Check::warn(
        NAME,
        format!("{}; this node sends nothing to them", problems.join("; ")),
        "run `meshctl doctor` on those nodes; check that the agent runs there and reaches every manager's feed \
         port",
    ))
}

/// Whether the peers' data paths answer probes through the mesh's UDP port.
pub(super) fn mesh_port(
    own: DatapathKind,
    port: u16,
    peers: &[PeerFacts],
    trouble: Option<&str>,
    now: SystemTime,
) -> Option<Check> {
    const NAME: &str = "mesh port of other nodes";
    if let Some(trouble) = trouble {
        let remedy = match own {
            DatapathKind::Ebpf => {
                format!("stop what uses UDP {port} on this node, or give all agents another --geneve-port")
            }
            DatapathKind::Ipvs => "allow the agent's group ICMP sockets".to_owned(),
        };
        return Some(Check::warn(NAME, trouble, remedy));
    }
    let probed: Vec<_> = peers
        .iter()
        .filter_map(|peer| Some((peer, peer.probes.as_ref()?)))
        .collect();
    if probed.is_empty() {
        return None;
    }
    let problems: Vec<_> = probed
        .iter()
        .filter_map(|(peer, liveness)| {
            let name = format!("{} ({})", peer.hostname, peer.address);
            match liveness.answers {
                Some(true) => None,
                Some(false) => {
                    let since = liveness.silent_since.unwrap_or(now);
                    let seconds = now.duration_since(since).unwrap_or_default().as_secs();
                    Some(if liveness.answers_again {
                        format!(
                            "{name} answers irregularly, and gets no new connections for {seconds} s if others can \
                             take them: packets between the nodes are lost"
                        )
                    } else {
                        format!("{name} has not answered for {seconds} s")
                    })
                }
                None => Some(format!("{name} has not answered since this agent started")),
            }
        })
        .collect();
    if problems.is_empty() {
        let slowest = probed
            .iter()
            .filter_map(|(_, liveness)| liveness.round_trip)
            .max();
        let slowest = slowest.unwrap_or_default().as_secs_f64() * 1_000.0;
        return Some(Check::ok(
            NAME,
            format!(
                "UDP {port}: {} answer probes, the slowest within {slowest:.1} ms",
                count(probed.len())
            ),
        ));
    }
    let echo = match own {
        DatapathKind::Ebpf => "",
        DatapathKind::Ipvs => {
            "on IPVS, the nodes must also answer ICMP echo requests that come by docker_gwbridge (chain INPUT, \
             net.ipv4.icmp_echo_ignore_all); "
        }
    };
    Some(Check::warn(
        NAME,
        format!("probes to UDP {port}: {}", listed(&problems)),
        format!(
            "allow UDP {port} between the nodes' addresses, in both directions (nftables, ufw, the provider's security \
             groups); {echo}`tcpdump -ni any udp port {port}` on both nodes shows how far the probes come; an agent \
             without probes has to be updated"
        ),
    ))
}

/// Whether all agents are of one release. Those next to each other work together, others are not tested.
pub(super) fn releases(own: &str, peers: &[PeerFacts]) -> Option<Check> {
    const NAME: &str = "releases of the agents";
    let mut by_release = BTreeMap::<&str, Vec<String>>::new();
    for peer in peers.iter().filter(|peer| peer.has_datapath()) {
        by_release
            .entry(&peer.release)
            .or_default()
            .push(peer.hostname.clone());
    }
    if by_release.is_empty() {
        return None;
    }
    if by_release.keys().all(|release| *release == own) {
        return Some(Check::ok(NAME, format!("{own} on every node")));
    }
    let detail: Vec<_> = by_release
        .iter()
        .filter(|(release, _)| **release != own)
        .map(|(release, names)| match *release {
            "" => format!(
                "an older release, which does not say its number, on {}",
                listed(names)
            ),
            release => format!("{release} on {}", listed(names)),
        })
        .collect();
    let outcome = if by_release.keys().all(|release| works_with(own, release)) {
        Outcome::Warn
    } else {
        Outcome::Fail
    };
    Some(Check::new(
        NAME,
        outcome,
        format!("{own} on this node, {}", detail.join(", ")),
        "update the agents of all nodes to one release; only a release and the one before it work together"
            .to_owned(),
    ))
}

/// Whether agents of two releases work together: of one minor version, or of adjoining ones. One that does
/// not say its number may be the one before.
fn works_with(own: &str, other: &str) -> bool {
    if other.is_empty() || own == other {
        return true;
    }
    let minor = |release: &str| {
        let mut parts = release.split(['.', '-', '+']).map(str::parse::<u64>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    match (minor(own), minor(other)) {
        (Some(own), Some(other)) => own.0 == other.0 && own.1.abs_diff(other.1) <= 1,
        _ => false,
    }
}

pub(super) fn count(nodes: usize) -> String {
    if nodes == 1 {
        "the other node".to_owned()
    } else {
        format!("all {nodes} other nodes")
    }
}

/// The first few, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let distinct: BTreeSet<_> = names.iter().collect();
    first_few(distinct, NAMED, ", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(last: u8, release: &str) -> PeerFacts {
        PeerFacts {
            hostname: format!("n{last}"),
            address: Ipv4Addr::new(192, 0, 2, last),
            ready: true,
            datapath: NodeDatapath::Ebpf,
            release: release.to_owned(),
            path_mtu: None,
            uplink: None,
            probes: Some(PeerLiveness {
                answers: Some(true),
                round_trip: Some(Duration::from_micros(u64::from(last) * 100)),
                ..PeerLiveness::default()
            }),
        }
    }

    #[test]
    fn mixed_releases_are_named_and_distant_ones_are_a_fault() {
        let outcome = |own, others: &[&str]| {
            let peers: Vec<_> = others
                .iter()
                .zip(2..)
                .map(|(release, last)| peer(last, release))
                .collect();
            releases(own, &peers).unwrap()
        };
        assert_eq!(outcome("0.3.0", &["0.3.0", "0.3.0"]).outcome, Outcome::Ok);
        let mixed = outcome("0.3.0", &["0.3.0", "0.2.9", ""]);
        assert_eq!(mixed.outcome, Outcome::Warn);
        assert!(
            mixed.detail.contains("0.2.9 on n3") && mixed.detail.contains("number, on n4"),
            "{mixed:?}"
        );
        for distant in ["0.1.0", "0.5.0", "1.3.0", "unknown"] {
            assert_eq!(outcome("0.3.0", &[distant]).outcome, Outcome::Fail, "{distant}");
        }
        let gone = PeerFacts {
            datapath: NodeDatapath::None,
            ..peer(2, "0.1.0")
        };
        assert_eq!(releases("0.3.0", &[gone]), None, "no agent runs there");
    }

    #[test]
    fn a_peer_that_does_not_answer_is_named_with_the_port_and_a_hint_at_firewalls() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let mut peers = [peer(2, ""), peer(3, ""), peer(4, "")];
        let check = mesh_port(DatapathKind::Ebpf, 6081, &peers, None, now).unwrap();
        assert_eq!(check.outcome, Outcome::Ok);
        assert!(check.detail.contains("all 3 other nodes") && check.detail.contains("0.4 ms"));
        peers[0].probes = Some(PeerLiveness {
            answers: Some(false),
            silent_since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(88)),
            ..PeerLiveness::default()
        });
        let unsteady = peers[0].probes.map(|probes| PeerLiveness {
            answers_again: true,
            ..probes
        });
        let check = mesh_port(
            DatapathKind::Ebpf,
            6081,
            &[PeerFacts {
                probes: unsteady,
                ..peer(2, "")
            }],
            None,
            now,
        );
        let detail = check.unwrap().detail;
        assert!(
            detail.contains("answers irregularly") && detail.contains("for 12 s"),
            "{detail}"
        );
        peers[1].probes = Some(PeerLiveness::default());
        let check = mesh_port(DatapathKind::Ebpf, 6081, &peers, None, now).unwrap();
        assert_eq!(check.outcome, Outcome::Warn);
        assert_eq!(
            check.detail,
            "probes to UDP 6081: n2 (192.0.2.2) has not answered for 12 s, n3 (192.0.2.3) has not answered since this \
             agent started"
        );
        assert!(check.remedy.contains("UDP 6081") && check.remedy.contains("nftables"));
    }

    #[test]
    fn the_prober_s_own_trouble_comes_first_and_without_peers_there_is_no_check() {
        let check = mesh_port(
            DatapathKind::Ebpf,
            6081,
            &[peer(2, "")],
            Some("the port is in use"),
            SystemTime::UNIX_EPOCH,
        );
        assert_eq!(check.unwrap().detail, "the port is in use");
        assert_eq!(
            mesh_port(DatapathKind::Ebpf, 6081, &[], None, SystemTime::UNIX_EPOCH),
            None
        );
        assert_eq!(announcements(DatapathKind::Ebpf, &[]), None);
    }

    #[test]
    fn ready_nodes_without_a_data_path_of_this_kind_are_named() {
        let mut peers = [peer(2, ""), peer(3, ""), peer(4, ""), peer(5, "")];
        assert_eq!(
            announcements(DatapathKind::Ebpf, &peers).unwrap().outcome,
            Outcome::Ok
        );
        peers[0].datapath = NodeDatapath::Unknown;
        peers[1].datapath = NodeDatapath::Ipvs;
        peers[2].datapath = NodeDatapath::None;
        peers[3].datapath = NodeDatapath::None;
        peers[3].ready = false;
        let check = announcements(DatapathKind::Ebpf, &peers).unwrap();
        assert_eq!(check.outcome, Outcome::Warn);
        assert_eq!(
            check.detail,
            "no announcement from n2; no data path on n4; another kind of data path on n3; this node sends nothing to \
             them"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (10..30).map(|number| format!("n{number}")).collect();
        assert_eq!(
            listed(&names),
            "n10, n11, n12, n13, n14, n15, n16, n17 and 12 more"
        );
    }
}
