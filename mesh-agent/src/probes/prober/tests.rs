//! The prober on real sockets; a thread does what the peer's program does.

use std::{
    collections::BTreeMap,
    net::UdpSocket as Plain,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mesh_support::watched::Watched as _;

use super::*;
use crate::probes::{Geneve, Route};

const NODE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const LIMIT: Duration = Duration::from_secs(10);
/// Offset of the option's type, and the type of an answer.
const ANSWER: (usize, u8) = (10, 0x89);

fn targets(port: u16) -> Targets {
    Targets {
        node_address: NODE,
        peers: BTreeMap::from([(PEER, "peer".to_owned())]),
        medium: Medium::Geneve(Geneve {
            vni: 7,
            port,
            keys: BTreeMap::new(),
            routes: BTreeMap::from([(
                PEER,
                Route {
                    interface: 1,
                    mtu: 1500,
                },
            )]),
        }),
    }
}

fn free_port() -> u16 {
    let socket = Plain::bind((NODE, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// Sends probes back as answers while `answers` is set. The path to here carries packets of 1,400 bytes.
fn answer(port: u16, answers: Arc<AtomicBool>) {
    let socket = Plain::bind((PEER, port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    std::thread::spawn(move || {
        let mut payload = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut payload) {
            payload[ANSWER.0] = ANSWER.1;
            if answers.load(Ordering::Relaxed) && length + 28 <= 1400 {
                socket.send_to(&payload[..length], from).unwrap();
            }
        }
    });
}

async fn until(report: &mut watch::Receiver<ProbeReport>, mut what: impl FnMut(&ProbeReport) -> bool) {
    let found = timeout(LIMIT, report.wait_for(|report| what(report)))
        .await
        .is_ok();
    assert!(found, "{:?}", report.current());
}

#[tokio::test]
async fn a_peer_that_stops_answering_is_reported_and_again_when_it_returns() {
    let port = free_port();
    let answers = Arc::new(AtomicBool::new(true));
    answer(port, Arc::clone(&answers));
    let (_targets, receiver) = watch::channel(Some(targets(port)));
    let (sender, mut report) = watch::channel(ProbeReport::default());
    let stop = CancellationToken::new();
    let prober = tokio::spawn(probe(receiver, sender, stop.clone()));
    until(&mut report, |report| {
        let peer = report.peers.get(&PEER);
        peer.is_some_and(|peer| peer.answers == Some(true) && peer.round_trip.is_some())
    })
    .await;
    answers.store(false, Ordering::Relaxed);
    until(&mut report, |report| report.silent() == [PEER].into()).await;
    answers.store(true, Ordering::Relaxed);
    until(&mut report, |report| report.silent().is_empty()).await;
    stop.cancel();
    prober.await.unwrap();
}

#[tokio::test]
async fn the_size_that_the_path_carries_is_reported() {
    let port = free_port();
    answer(port, Arc::new(AtomicBool::new(true)));
    let (_targets, receiver) = watch::channel(Some(targets(port)));
    let (sender, mut report) = watch::channel(ProbeReport::default());
    let stop = CancellationToken::new();
    let prober = tokio::spawn(probe(receiver, sender, stop.clone()));
    let mut seen = Vec::new();
    until(&mut report, |report| {
        seen.extend(report.path_mtus().get(&PEER));
        seen.last() == Some(&1400)
    })
    .await;
    seen.dedup();
    assert_eq!(seen, [1280, 1400], "less at once, more when all is known");
    stop.cancel();
    prober.await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_used_once_it_is_free() {
    let port = free_port();
    let taken = Plain::bind((NODE, port)).unwrap();
    answer(port, Arc::new(AtomicBool::new(true)));
    let (_targets, receiver) = watch::channel(Some(targets(port)));
    let (sender, mut report) = watch::channel(ProbeReport::default());
    let stop = CancellationToken::new();
    let prober = tokio::spawn(probe(receiver, sender, stop.clone()));
    until(&mut report, |report| report.trouble.is_some()).await;
    assert!(report.current().silent().is_empty());
    drop(taken);
    until(&mut report, |report| {
        report.trouble.is_none() && report.peers.values().any(|peer| peer.answers == Some(true))
    })
    .await;
    stop.cancel();
    prober.await.unwrap();
}
