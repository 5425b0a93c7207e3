//! The socket of probes: UDP on the mesh's port, or ICMP echo requests. Both are sent and received alike.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with,
    sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover},
};
use tokio::net::UdpSocket;

use super::{Geneve, Medium, Targets, wire};

/// A socket that is bound as some targets need it.
pub(super) struct Bound {
    socket: UdpSocket,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The mesh's own port: what lets the tunnel's packets through lets answers through as well.
    Udp(SocketAddrV4),
    /// The kernel gives such a socket an identifier, by which it finds its answers.
    Echo(Ipv4Addr),
}

impl At {
    fn of(targets: &Targets) -> Self {
        match &targets.medium {
            Medium::Geneve(geneve) => Self::Udp(SocketAddrV4::new(targets.node_address, geneve.port)),
            Medium::Tunnel(_) => Self::Echo(targets.node_address),
        }
    }

    async fn open(self) -> io::Result<UdpSocket> {
        let socket = match self {
            Self::Udp(at) => {
                let socket = UdpSocket::bind(at).await?;
                // What is padded must arrive whole, whatever the kernel knows of the path.
                set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
                socket
            }
            Self::Echo(address) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::ICMP))?;
                bind(&socket, &SocketAddrV4::new(address, 0))?;
                UdpSocket::from_std(socket.into())?
            }
        };
        // Before the first event the runtime would refuse to send.
        socket.writable().await?;
        Ok(socket)
    }
}

impl Bound {
    /// Keeps the socket while its address is the same: answers may be on their way to it.
    pub(super) async fn keep_or_open<'a>(
        bound: &'a mut Option<Self>,
        targets: &Targets,
    ) -> io::Result<&'a Self> {
        let at = At::of(targets);
        if bound.as_ref().is_none_or(|bound| bound.at != at) {
            *bound = None;
            let socket = at.open().await?;
            *bound = Some(Self { socket, at });
        }
        bound.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends a probe.
    pub(super) fn send(&self, targets: &Targets, peer: Ipv4Addr, nonce: u64) -> io::Result<()> {
        match &targets.medium {
            Medium::Geneve(geneve) => {
                let payload = wire::probe(geneve.vni, nonce, geneve.keys.get(&peer).copied());
                self.send_to(&payload, SocketAddrV4::new(peer, geneve.port))
            }
            Medium::Tunnel(addresses) => {
                let address = addresses.get(&peer).ok_or(io::ErrorKind::HostUnreachable)?;
                self.send_to(&wire::echo(nonce), SocketAddrV4::new(*address, 0))
            }
        }
    }

    /// Sends a probe whose packet has so many bytes from its IP header on.
    pub(super) fn send_padded(
        &self,
        geneve: &Geneve,
        peer: Ipv4Addr,
        nonce: u64,
        size: u16,
    ) -> io::Result<()> {
        let payload = wire::padded(geneve.vni, nonce, geneve.keys.get(&peer).copied(), size);
        self.send_to(&payload, SocketAddrV4::new(peer, geneve.port))
    }

    /// The next packet that has arrived: the peer and the nonce, if it is an answer.
    pub(super) fn receive(&self, targets: &Targets) -> io::Result<Option<(Ipv4Addr, u64)>> {
        let mut payload = [0; wire::LENGTH];
        let (length, from) = self.socket.try_recv_from(&mut payload)?;
        let SocketAddr::V4(from) = from else {
            return Ok(None);
        };
        let payload = &payload[..length];
        Ok(match &targets.medium {
            Medium::Geneve(geneve) => wire::answer(geneve.vni, payload).map(|nonce| (*from.ip(), nonce)),
            Medium::Tunnel(addresses) => {
                let mut peers = addresses.iter();
                let peer = peers.find(|(_, address)| *address == from.ip());
                peer.and_then(|(peer, _)| Some((*peer, wire::echo_reply(payload)?)))
            }
        })
    }

    /// Waits until something may have arrived.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    fn send_to(&self, payload: &[u8], to: SocketAddrV4) -> io::Result<()> {
        self.socket.try_send_to(payload, to.into()).map(drop)
    }
}
