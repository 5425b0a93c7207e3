//! Sends probes and receives their answers, and reports what [`liveness`](super::liveness) makes of them.

use std::{
    collections::BTreeMap,
    io, mem,
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Geneve, Medium, PeerLiveness, ProbeReport, Targets,
    liveness::{Change, Liveness, Sent},
    path_mtu::{Found, Outcome, PathMtus},
    socket::Bound,
};

/// How long to wait before the port is tried again.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// How often round-trip times are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Probes the targets until it is stopped. Only changes wake the report's receivers; it has fresh round-trip
/// times once a second.
pub async fn probe(
    mut targets: watch::Receiver<Option<Targets>>,
    report: watch::Sender<ProbeReport>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        let mut prober = Prober {
            liveness: Liveness::default(),
            path_mtus: PathMtus::default(),
            started: Instant::now(),
            // A host that does not see the probes cannot answer for a peer.
            session: fastrand::u32(..),
            sizes_session: fastrand::u32(..),
            report,
            reported: Duration::ZERO,
            was_isolated: false,
            medium: None,
        };
        let mut bound = None;
        loop {
            let current = targets.newest();
            prober.follow(current.as_ref());
            let ended = match current.filter(|targets| !targets.peers.is_empty()) {
                Some(current) => prober.run(&current, &mut targets, &mut bound).await,
                None => {
                    bound = None;
                    prober.has_trouble(None);
                    targets.changed().await.is_err()
                }
            };
            if ended {
                return;
            }
        }
    })
    .await;
}

struct Prober {
    liveness: Liveness,
    path_mtus: PathMtus,
    started: Instant,
    session: u32,
    /// The same of padded probes, whose numbers are their sizes.
    sizes_session: u32,
    report: watch::Sender<ProbeReport>,
    reported: Duration,
    was_isolated: bool,
    /// The kind of what carries the probes.
    medium: Option<mem::Discriminant<Medium>>,
}

impl Prober {
    fn follow(&mut self, targets: Option<&Targets>) {
        let now = self.started.elapsed();
        let medium = targets.map(|targets| mem::discriminant(&targets.medium));
        if medium.is_some() && mem::replace(&mut self.medium, medium) != medium {
            // A peer that answers by one way says nothing of the other.
            self.liveness = Liveness::default();
        }
        let peers = targets.into_iter().flat_map(|targets| targets.peers.keys());
        self.liveness.follow(peers.copied(), now);
        let routes = match targets.map(|targets| &targets.medium) {
            Some(Medium::Geneve(geneve)) => geneve.routes.clone(),
            // The kernel fragments what is too big for the tunnel's way.
            Some(Medium::Tunnel(_)) | None => BTreeMap::new(),
        };
        self.path_mtus.follow(&routes);
        self.publish(now, true);
    }

    /// Probes until the targets change; true if they no longer can.
    async fn run(
        &mut self,
        current: &Targets,
        targets: &mut watch::Receiver<Option<Targets>>,
        bound: &mut Option<Bound>,
    ) -> bool {
        let socket = match Bound::keep_or_open(bound, current).await {
            Ok(socket) => socket,
            Err(error) => {
                // What was known of the peers is no longer followed.
                self.liveness = Liveness::default();
                self.path_mtus = PathMtus::default();
                self.publish(self.started.elapsed(), true);
                self.has_trouble(Some(no_socket(current, &error)));
                // The device of an IPVS data path has the port until it is removed.
                return matches!(timeout(BIND_RETRY, targets.changed()).await, Ok(Err(_)));
            }
        };
        self.has_trouble(None);
        let (mut changes, mut found) = (Vec::new(), Vec::new());
        loop {
            self.receive(socket, current, &mut changes, &mut found);
            let now = self.started.elapsed();
            let session = self.session;
            let next = self.liveness.step(now, &mut changes, |peer, number| {
                match socket.send(current, peer, nonce_of(session, number)) {
                    Ok(()) => Sent::Yes,
                    Err(error) => outcome(&error),
                }
            });
            let Self {
                liveness, path_mtus, ..
            } = self;
            let session = self.sizes_session;
            let answered = |peer| liveness.answered_at(peer);
            if let Medium::Geneve(geneve) = &current.medium {
                path_mtus.step(now, &mut found, answered, |peer, size| {
                    match socket.send_padded(geneve, peer, nonce_of(session, size.into()), size) {
                        Ok(()) => Outcome::Sent,
                        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Outcome::TooBig,
                        Err(_) => Outcome::Failed,
                    }
                });
            }
            let changed = !changes.is_empty() || !found.is_empty();
            if changed || now >= self.reported + REPORT_INTERVAL {
                self.publish(now, changed);
                self.log(current, &changes);
                log_sizes(current, &found);
                changes.clear();
                found.clear();
            }
            tokio::select! {
                changed = targets.changed() => return changed.is_err(),
                // Answers are read at once, for the sake of their round-trip time.
                _ = socket.readable() => {}
                () = sleep_until(self.started + next) => {}
            }
        }
    }

    /// Takes every answer that has arrived.
    fn receive(
        &mut self,
        socket: &Bound,
        current: &Targets,
        changes: &mut Vec<Change>,
        found: &mut Vec<Found>,
    ) {
        // Bounded: strangers must not keep this from sending.
        for _ in 0..4 * self.liveness.peers().len().max(64) {
            match socket.receive(current) {
                Ok(Some((peer, nonce))) => {
                    let now = self.started.elapsed();
                    let number = nonce as u32;
                    if nonce == nonce_of(self.session, number) {
                        changes.extend(self.liveness.answered(peer, number, now));
                    } else if nonce == nonce_of(self.sizes_session, number)
                        && let Ok(size) = u16::try_from(number)
                    {
                        found.extend(self.path_mtus.answered(peer, size, now));
                    }
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    fn publish(&mut self, now: Duration, wake: bool) {
        self.reported = now;
        let wall_clock = SystemTime::now();
        let peers = self.liveness.peers().iter().map(|peer| {
            let liveness = PeerLiveness {
                answers: peer.answers(),
                round_trip: peer.round_trip,
                path_mtu: self.path_mtus.found(peer.address),
                silent_since: peer.silent_since.map(|since| wall_clock - (now - since)),
                answers_again: peer.answers_again(),
                lost: peer.lost,
            };
            (peer.address, liveness)
        });
        self.report.send_if_modified(|report| {
            report.peers = peers.collect();
            wake
        });
    }

    fn has_trouble(&self, trouble: Option<String>) {
        self.report.send_if_modified(|report| {
            let changed = report.trouble != trouble;
            if let Some(text) = trouble.as_ref().filter(|_| changed) {
                warn!("{text}");
            }
            report.trouble = trouble;
            changed
        });
    }

    fn log(&mut self, targets: &Targets, changes: &[Change]) {
        let name = |address: &Ipv4Addr| targets.peers.get(address).map_or("", String::as_str);
        for change in changes {
            match change {
                Change::Found(address) => info!(peer = name(address), %address, "the peer answers probes"),
                Change::Silent(address) => warn!(
                    peer = name(address),
                    %address,
                    "the peer no longer answers probes: new connections go to other nodes where they can"
                ),
                Change::Lost(address) => warn!(
                    peer = name(address),
                    %address,
                    "the peer stays silent: connections to it are refused where its services run elsewhere"
                ),
                Change::Back(address, silent) => info!(
                    peer = name(address),
                    %address,
                    silent_seconds = silent.as_secs_f32(),
                    "the peer answers probes again"
                ),
            }
        }
        let is_isolated = self.report.current().is_isolated();
        if is_isolated && !self.was_isolated {
            warn!(
                "no peer answers probes any more: this node may be cut off; connections to peers are kept, and new \
                 ones go to them only where this node has no replica"
            );
        }
        self.was_isolated = is_isolated;
    }
}

fn log_sizes(targets: &Targets, found: &[Found]) {
    for Found { address, mtu } in found {
        let peer = targets.peers.get(address).map_or("", String::as_str);
        let route_mtu = match &targets.medium {
            Medium::Geneve(geneve) => geneve.routes.get(address).map_or(0, |route| route.mtu),
            Medium::Tunnel(_) => 0,
        };
        if *mtu < route_mtu {
            warn!(
                peer,
                %address,
                mtu,
                route_mtu,
                "the path to the peer carries smaller packets than its route: the mesh follows it, other \
                 traffic may not"
            );
        } else {
            debug!(peer, %address, mtu, "the path to the peer carries what its route does");
        }
    }
}

/// What a probe's answer must repeat.
fn nonce_of(session: u32, number: u32) -> u64 {
    u64::from(session) << 32 | u64::from(number)
}

/// Why there is no socket, with a remedy.
fn no_socket(targets: &Targets, error: &io::Error) -> String {
    let address = targets.node_address;
    let lost = "a lost peer is noticed by its managers only";
    match &targets.medium {
        Medium::Geneve(Geneve { port, .. }) => format!(
            "cannot open UDP {address}:{port} for probes of the peers ({error}): {lost}; find what uses the port with \
             `ss -ulpn sport = :{port}`"
        ),
        Medium::Tunnel(_) => format!(
            "cannot open an ICMP socket at {address} for probes of the peers ({error}): {lost}; the group of the agent \
             must be in the range of `sysctl net.ipv4.ping_group_range`"
        ),
    }
}

/// What a failure to send says of the peer.
fn outcome(error: &io::Error) -> Sent {
    match error.kind() {
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Sent::Yes
        }
        // A full queue, a firewall of this node's own.
        _ => Sent::No,
    }
}

#[cfg(test)]
mod tests;
