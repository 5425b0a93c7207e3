//! Probes through the tunnel: the kernel of a peer answers them for as long as the tunnel's packets arrive.

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_agent::{
    datapath::ipvs::address::peers_mesh_addresses,
    probes::{Medium, ProbeReport, Targets, probe},
};
use mesh_support::watched::Watched as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    localhost::PATIENCE,
    namespace::{Namespace, nft_load, output, sysctl},
    walk::{ENTRY, Network, OTHER},
};

/// How fast a peer that does not answer is noticed.
const NOTICED: Duration = Duration::from_secs(1);

#[test]
fn a_peer_is_silent_within_a_second_of_a_cut_cable_or_a_blocked_port_and_comes_back() {
    let network = Network::new();
    let entry = network.node(ENTRY, &[OTHER], false);
    let other = network.node(OTHER, &[ENTRY], true);
    // As the data path sets it; the kernel begins with an empty range.
    entry.run(|| sysctl("net/ipv4/ping_group_range", "0 0"));
    let (_targets, receiver) = watch::channel(Some(Targets {
        node_address: ENTRY,
        peers: [(OTHER, "other".to_owned())].into(),
        medium: Medium::Tunnel(peers_mesh_addresses(ENTRY, [OTHER].into_iter())),
    }));
    let (sender, report) = watch::channel(ProbeReport::default());
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        let _stop = stop.clone().drop_guard();
        let entry = &entry;
        scope.spawn(move || entry.run(|| run(probe(receiver, sender, stop))));

        until(&report, |answers, silent| answers && !silent, PATIENCE);
        network.wire.run(|| forwards("node2", false));
        until(&report, |_, silent| silent, NOTICED);
        network.wire.run(|| forwards("node2", true));
        until(&report, |_, silent| !silent, PATIENCE);
        drops_the_tunnel(&other);
        until(&report, |_, silent| silent, NOTICED);
    });
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work);
}

/// Whether a port of the wire forwards. A port that is set down would disturb the tests beside this one: the
/// kernel takes its time to report the carriers of interfaces after each loss of one.
fn forwards(port: &str, whether: bool) {
    let state = if whether { "3" } else { "0" };
    output("bridge", &format!("link set dev {port} state {state}"), "");
}

/// A firewall that a packet through the tunnel would have to pass.
fn drops_the_tunnel(node: &Namespace) {
    node.run(|| {
        nft_load(
            "add table ip firewall\n\
             add chain ip firewall input { type filter hook input priority 0; }\n\
             add rule ip firewall input udp dport 6081 drop\n",
        );
    });
}

/// Waits until the peer has answered and is silent or not.
#[track_caller]
fn until(report: &watch::Receiver<ProbeReport>, what: impl Fn(bool, bool) -> bool, limit: Duration) {
    let begin = Instant::now();
    loop {
        let report = report.current();
        assert_eq!(report.trouble, None);
        if what(
            report.answered().contains(&OTHER),
            report.silent().contains(&OTHER),
        ) {
            break;
        }
        assert!(begin.elapsed() < limit, "after {limit:?}: {report:?}");
        thread::sleep(Duration::from_millis(5));
    }
    println!("after {:?}", begin.elapsed());
}
