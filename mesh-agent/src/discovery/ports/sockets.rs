//! The sockets of this thread's network namespace that take what comes in to a port: listening ones of TCP,
//! and bound ones of UDP without a peer.

use std::net::IpAddr;

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    datapath::netlink::{Connection, Message, NetlinkError},
    model::{Protocol, ServiceKey},
};

/// `INET_DIAG_CGROUP_ID` of <linux/inet_diag.h>, since Linux 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// Its protocol and port.
    pub(super) key: ServiceKey,
    /// What its descriptors link to below `/proc`.
    pub(super) inode: u32,
    /// The user that made it.
    pub(super) user: u32,
    /// The cgroup in which it was made.
    pub(super) cgroup: Option<u64>,
}

/// The sockets that take IPv4 packets.
///
/// # Errors
/// When the kernel cannot list them.
pub(super) fn bound() -> Result<Vec<Socket>, NetlinkError> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (protocol, number, states) in [
        (Protocol::Tcp, IPPROTO_TCP, StateFlags::LISTEN),
        (Protocol::Udp, IPPROTO_UDP, StateFlags::CLOSE),
    ] {
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: number,
                extensions: ExtensionFlags::empty(),
                states: states.clone(),
                socket_id,
            });
            for answer in connection.dump(&Message::encode(&request, 0))? {
                if let SockDiagMessage::InetResponse(response) = answer.decode()? {
                    found.extend(socket(protocol, &response));
                }
            }
        }
    }
    Ok(found)
}

/// `None` for one that takes IPv6 packets only.
fn socket(protocol: Protocol, response: &InetResponse) -> Option<Socket> {
    let only_ipv6 = match response.header.socket_id.source_address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) if address.is_unspecified() => response
            .nlas
            .iter()
            .any(|attribute| matches!(attribute, Nla::SkV6Only(true))),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
    };
    let cgroup = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) => cgroup(other),
        _ => None,
    });
    (!only_ipv6).then_some(Socket {
        key: ServiceKey {
            protocol,
            port: response.header.socket_id.source_port,
        },
        inode: response.header.inode,
        user: response.header.uid,
        cgroup,
    })
}

fn cgroup(attribute: &netlink_packet_core::DefaultNla) -> Option<u64> {
    use netlink_packet_core::Nla as _;
    if attribute.kind() != INET_DIAG_CGROUP_ID {
        return None;
    }
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, UdpSocket};

    use socket2::{Domain, Socket as AnySocket, Type};

    use super::*;

    #[test]
    fn listeners_and_bound_udp_sockets_are_found_but_for_those_of_ipv6_alone() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let only = AnySocket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        only.set_only_v6(true).unwrap();
        only.bind(&std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())
            .unwrap();
        only.listen(1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .connect(("127.0.0.1", udp.local_addr().unwrap().port()))
            .unwrap();

        let found = bound().unwrap();
        let has = |protocol, port| {
            found
                .iter()
                .any(|socket| socket.key == ServiceKey { protocol, port })
        };
        assert!(has(Protocol::Tcp, tcp.local_addr().unwrap().port()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap().port()));
        assert!(has(Protocol::Tcp, both.local_addr().unwrap().port()));
        let only = only.local_addr().unwrap().as_socket().unwrap().port();
        assert!(!has(Protocol::Tcp, only));
        assert!(!has(Protocol::Udp, client.local_addr().unwrap().port()));
    }
}
