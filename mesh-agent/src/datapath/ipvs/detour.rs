//! The detour of containers on other bridges than Docker's own: a pair of veths in the host's namespace.
//! Imports the data path's netlink, links and the tunnel's numbers only.
//!
//! A replica's reply to such a container would be forwarded from one of Docker's bridges to another, which
//! Docker's rules forbid. So the container's connection leaves by one end of the pair, with addresses of the
//! detour, and comes in by the other end, where IPVS answers it like any client's. The reply goes back the
//! same way: to Docker's rules it leaves the node by its own bridge, and what then comes in from outside is
//! part of a connection that a container has opened.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::{
    link,
    tunnel::{PROTOCOL, RULE_PRIORITY, TABLE},
};
use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// The end by which containers' connections leave.
pub(super) const OUT: &str = "mesh-out";
/// The end by which they come in again.
pub(super) const IN: &str = "mesh-in";
/// The first byte of the detour's addresses, a part of class E.
pub(super) const NETWORK: u8 = 252;
/// The source of the connections between the two.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(NETWORK, 0, 0, 1);
/// Their destination: every service is answered there.
pub(super) const FRONTEND: Ipv4Addr = Ipv4Addr::new(NETWORK, 0, 0, 2);

/// The routing table for what comes in: there, and only there, the frontend is the node's own address.
const TABLE_IN: u32 = TABLE + 1;
const TABLE_MAIN: u32 = 254;
/// Both ends have the same, and resolve no addresses: what one sends is for the other.
const MAC: [u8; 6] = [0xfe, 0x4d, 0, 0, 0, 0];
/// No packet of any bridge is too big for the detour.
const MTU: u32 = 65_535;

/// The detour could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DetourError {
    #[error("cannot open rtnetlink to create {OUT}; the agent needs CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    #[error("there is an interface {0} that is not one of a pair of veths; rename or remove it")]
    NameTaken(&'static str),
    #[error("{0} is gone right after it was created: is something else removing interfaces?")]
    Vanished(&'static str),
    #[error("cannot {0}")]
    Refused(String, #[source] NetlinkError),
}

/// The detour of one network namespace: that of the thread that opened it.
pub(super) struct Detour {
    connection: Connection,
    /// The ends for which everything is there, by their indexes.
    made: Option<[u32; 2]>,
}

impl Detour {
    pub(super) fn open() -> Result<Self, DetourError> {
        let connection = Connection::open(NETLINK_ROUTE).map_err(DetourError::Open)?;
        Ok(Self {
            connection,
            made: None,
        })
    }

    /// Makes what is missing.
    pub(super) fn ensure(&mut self) -> Result<(), DetourError> {
        let ends = match self.ends()? {
            Some(ends) => ends,
            None => self.make()?,
        };
        if self.made == Some(ends) {
            return Ok(());
        }
        let [out, into] = ends;
        for index in ends {
            self.request(
                format!("set up the end {index} of the pair {OUT}"),
                set_up(index),
                0,
            )?;
        }
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        for (message, flags) in [
            (route(FRONTEND, out, TABLE_MAIN), replace),
            (route(CLIENT, into, TABLE_MAIN), replace),
            (local(FRONTEND, into), replace),
            (RouteNetlinkMessage::NewRule(rule()), NLM_F_CREATE | NLM_F_EXCL),
        ] {
            self.request(format!("route by {OUT} and {IN}"), message, flags)?;
        }
        self.made = Some(ends);
        Ok(())
    }

    /// Removes it, if it is there.
    pub(super) fn remove(&mut self) -> Result<(), DetourError> {
        self.made = None;
        let rule = self.request(
            format!("remove the routing rule of {IN}"),
            RouteNetlinkMessage::DelRule(rule()),
            0,
        );
        if let Some(index) = self.find(OUT)? {
            let mut message = LinkMessage::default();
            message.header.index = index;
            self.request(format!("remove {OUT}"), RouteNetlinkMessage::DelLink(message), 0)?;
        }
        rule
    }

    fn ends(&mut self) -> Result<Option<[u32; 2]>, DetourError> {
        Ok(match (self.find(OUT)?, self.find(IN)?) {
            (Some(out), Some(into)) => Some([out, into]),
            (None, None) => None,
            (Some(_), None) => return Err(DetourError::NameTaken(OUT)),
            (None, Some(_)) => return Err(DetourError::NameTaken(IN)),
        })
    }

    fn make(&mut self) -> Result<[u32; 2], DetourError> {
        let mut message = end(OUT);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(IN)))),
        ]));
        let new = RouteNetlinkMessage::NewLink(message);
        self.request(format!("create {OUT} and {IN}"), new, NLM_F_CREATE | NLM_F_EXCL)?;
        let out = self.find(OUT)?.ok_or(DetourError::Vanished(OUT))?;
        let into = self.find(IN)?.ok_or(DetourError::Vanished(IN))?;
        for index in [out, into] {
            let mut message = LinkMessage::default();
            message.header.index = index;
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            let without_ipv6 = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
            message.attributes.push(without_ipv6);
            // The kernel refuses this where IPv6 is off, which is as good.
            let set = self.request(String::new(), RouteNetlinkMessage::SetLink(message), 0);
            if let Err(error) = set {
                tracing::debug!(%error, "could not turn off IPv6 address generation of the detour");
            }
        }
        Ok([out, into])
    }

    fn find(&mut self, name: &'static str) -> Result<Option<u32>, DetourError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let found = link::look_up(&mut self.connection, request)
            .map_err(|source| DetourError::Refused(format!("look up {name}"), source))?;
        match found {
            Some(found) if !is_veth(&found) => Err(DetourError::NameTaken(name)),
            found => Ok(found.map(|found| found.header.index)),
        }
    }

    /// What is there already, or already gone, is no failure.
    fn request(
        &mut self,
        operation: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), DetourError> {
        match self.connection.request(&Message::encode(&message, flags)) {
            Err(error) if matches!(error.errno(), Some(Errno::EEXIST | Errno::ENOENT | Errno::ENODEV)) => {
                Ok(())
            }
            result => result.map_err(|source| DetourError::Refused(operation, source)),
        }
    }
}

fn is_veth(link: &LinkMessage) -> bool {
    let mut infos = link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.as_slice(),
        _ => &[],
    });
    infos.any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)))
}

fn end(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::Mtu(MTU),
    ];
    message
}

fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    RouteNetlinkMessage::SetLink(message)
}

fn route(to: Ipv4Addr, interface: u32, table: u32) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 32,
        kind: RouteType::Unicast,
        table: u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::from(PROTOCOL),
        scope: RouteScope::Link,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Destination(RouteAddress::Inet(to)),
        RouteAttribute::Oif(interface),
    ];
    RouteNetlinkMessage::NewRoute(message)
}

fn local(address: Ipv4Addr, interface: u32) -> RouteNetlinkMessage {
    let mut message = route(address, interface, TABLE_IN);
    if let RouteNetlinkMessage::NewRoute(message) = &mut message {
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
    }
    message
}

fn rule() -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Iifname(IN.to_owned()),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(TABLE_IN),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}
