//! IPVS's connections, as `/proc/net/ip_vs_conn` lists them. Reading is pure; knows nothing of the mesh.
//!
//! Format from `ip_vs_conn_seq_show` in `net/netfilter/ipvs/ip_vs_conn.c`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use super::kernel::{Destination, VirtualService};
use crate::{datapath::flow_list::FlowState, model::Protocol};

/// The list of the calling thread's network namespace.
const LIST: &str = "/proc/thread-self/net/ip_vs_conn";

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) client: SocketAddrV4,
    pub(super) service: VirtualService,
    pub(super) destination: Destination,
    pub(super) state: FlowState,
}

/// Calls `visit` with every IPv4 connection.
pub(super) fn for_each(mut visit: impl FnMut(Connection)) -> io::Result<()> {
    for line in BufReader::new(File::open(LIST)?).lines() {
        if let Some(connection) = parse(&line?) {
            visit(connection);
        }
    }
    Ok(())
}

/// A line of the list; `None` for its head, IPv6, other protocols, and what remembers a client's destination.
fn parse(line: &str) -> Option<Connection> {
    let mut columns = line.split_ascii_whitespace();
    let protocol = match columns.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => return None,
    };
    let mut socket = || {
        let address = columns.next().filter(|address| address.len() == 8)?;
        let address = Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?);
        let port = u16::from_str_radix(columns.next()?, 16).ok()?;
        Some(SocketAddrV4::new(address, port))
    };
    let (client, service, destination) = (socket()?, socket()?, socket()?);
    if client.port() == 0 {
        return None;
    }
    Some(Connection {
        client,
        service: VirtualService {
            address: IpAddr::V4(*service.ip()),
            port: service.port(),
            protocol,
        },
        destination: Destination {
            address: IpAddr::V4(*destination.ip()),
            port: destination.port(),
        },
        state: state(columns.next()?),
    })
}

fn state(name: &str) -> FlowState {
    match name {
        "ESTABLISHED" | "UDP" => FlowState::Open,
        "FIN_WAIT" | "CLOSE_WAIT" | "LAST_ACK" => FlowState::Closing,
        "TIME_WAIT" | "CLOSE" => FlowState::Closed,
        _ => FlowState::HalfOpen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_ipv4_connections_are_read() {
        let line = "TCP C0000207 9C40 0A000001 23F0 FA000105 0050 ESTABLISHED     897";
        let expected = Connection {
            client: "192.0.2.7:40000".parse().unwrap(),
            service: VirtualService {
                address: IpAddr::from([10, 0, 0, 1]),
                port: 9200,
                protocol: Protocol::Tcp,
            },
            destination: Destination {
                address: IpAddr::from([250, 0, 1, 5]),
                port: 80,
            },
            state: FlowState::Open,
        };
        assert_eq!(parse(line), Some(expected));
        for (name, state) in [
            ("SYN_RECV", FlowState::HalfOpen),
            ("FIN_WAIT", FlowState::Closing),
            ("TIME_WAIT", FlowState::Closed),
        ] {
            let line = line.replace("ESTABLISHED", name);
            assert_eq!(parse(&line), Some(Connection { state, ..expected }), "{name}");
        }
    }

    #[test]
    fn other_lines_are_skipped() {
        for line in [
            "",
            "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData",
            "TCP C0000207 0000 0A000001 23F0 FA000105 0050 NONE            297",
            "TCP 2001:0db8:0000:0000:0000:0000:0000:0007 9C40 2001:0db8:0000:0000:0000:0000:0000:0001 23F0 \
             2001:0db8:0000:0000:0000:0000:0000:0002 0050 ESTABLISHED     897",
            "TCP C0000207 9C40 0A000001",
            "SCTP C0000207 9C40 0A000001 23F0 FA000105 0050 ESTABLISHED     897",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
