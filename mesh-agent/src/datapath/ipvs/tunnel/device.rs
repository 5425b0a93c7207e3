//! The VXLAN device: finding it, creating it and attaching it to the bridge. Imports the data path's netlink
//! and links only.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};
use nix::errno::Errno;

use super::{TunnelError, TunnelPlan};
use crate::datapath::{
    ipvs::{address::peer_mac, link},
    netlink::{Connection, Message, NetlinkError},
};

/// The name of the device.
pub const DEVICE: &str = "mesh-vx";

/// TTL of encapsulated packets.
const TTL: u8 = 64;

/// An interface as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) index: u32,
    mtu: Option<u32>,
    address: Vec<u8>,
    /// The bridge it is a port of.
    bridge: Option<u32>,
    up: bool,
    /// The settings of a VXLAN device; `None` for other kinds.
    vxlan: Option<Vec<InfoVxlan>>,
    port: Vec<InfoBridgePort>,
}

/// Looks up an interface by its name.
pub(super) fn find(connection: &mut Connection, name: &str) -> Result<Option<Device>, TunnelError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let found = link::look_up(connection, request).map_err(|source| TunnelError::Device {
        operation: format!("look up {name}"),
        source,
    })?;
    Ok(found.as_ref().map(Device::of))
}

impl Device {
    /// Brings the device to the plan, as a port of this bridge.
    pub(super) fn ensure(
        connection: &mut Connection,
        plan: &TunnelPlan,
        bridge: &Self,
    ) -> Result<Self, TunnelError> {
        let mut found = find(connection, DEVICE)?;
        if let Some(device) = found.take_if(|device| !device.is_made_for(plan)) {
            device.delete(connection)?;
        }
        let device = match found {
            Some(device) => device,
            None => Self::make(connection, plan, bridge)?,
        };
        if device.mtu != bridge.mtu {
            device.set(
                connection,
                "set the MTU of",
                LinkMessage::default(),
                bridge.mtu.map(LinkAttribute::Mtu),
            )?;
        }
        if device.bridge != Some(bridge.index) {
            let attribute = Some(LinkAttribute::Controller(bridge.index));
            device.set(
                connection,
                "make a bridge port of",
                LinkMessage::default(),
                attribute,
            )?;
        }
        if device.bridge != Some(bridge.index) || !device.is_quiet_port() {
            link::set_bridge_port(connection, device.index, quiet_port()).map_err(|source| {
                TunnelError::Device {
                    operation: format!("configure the bridge port {DEVICE}"),
                    source,
                }
            })?;
        }
        if !device.up {
            let mut message = LinkMessage::default();
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            device.set(connection, "set up", message, None)?;
        }
        Ok(device)
    }

    /// Removes the device.
    pub(super) fn delete(&self, connection: &mut Connection) -> Result<(), TunnelError> {
        if self.vxlan.is_none() {
            return Err(TunnelError::NameTaken);
        }
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        match connection.request(&Message::encode(&RouteNetlinkMessage::DelLink(message), 0)) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            result => result.map_err(|source| TunnelError::Device {
                operation: format!("remove {DEVICE}"),
                source,
            }),
        }
    }

    /// Creates the device. It gets the bridge's MTU before it becomes a port, or the bridge would adopt the
    /// port's MTU.
    fn make(connection: &mut Connection, plan: &TunnelPlan, bridge: &Self) -> Result<Self, TunnelError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(DEVICE.to_owned()),
            LinkAttribute::Address(peer_mac(plan.node_address).0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(settings(plan))),
            ]),
        ];
        message.attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
        let flags = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_EXCL;
        let failed = |source: NetlinkError| TunnelError::Device {
            operation: format!(
                "create {DEVICE} for network {} on UDP port {}",
                plan.vni, plan.port
            ),
            source,
        };
        connection
            .request(&Message::encode(&RouteNetlinkMessage::NewLink(message), flags))
            .map_err(failed)?;
        let device = find(connection, DEVICE)?.ok_or(TunnelError::Vanished)?;
        // No link-local address. The kernel refuses this where IPv6 is off, which is as good.
        let without_ipv6 =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]);
        if let Err(error) = device.set(
            connection,
            "turn off IPv6 of",
            LinkMessage::default(),
            Some(without_ipv6),
        ) {
            tracing::debug!(device = DEVICE, %error, "could not turn off IPv6 address generation");
        }
        Ok(device)
    }

    fn set(
        &self,
        connection: &mut Connection,
        what: &str,
        mut message: LinkMessage,
        attribute: Option<LinkAttribute>,
    ) -> Result<(), TunnelError> {
        message.header.index = self.index;
        message.attributes.extend(attribute);
        connection
            .request(&Message::encode(&RouteNetlinkMessage::NewLink(message), 0))
            .map_err(|source| TunnelError::Device {
                operation: format!("{what} {DEVICE}"),
                source,
            })
    }

    /// Whether the settings that cannot be changed later are those of the plan.
    fn is_made_for(&self, plan: &TunnelPlan) -> bool {
        match &self.vxlan {
            // Another program's device: `delete` reports it.
            None => false,
            Some(found) => {
                self.address == peer_mac(plan.node_address).0
                    && settings(plan).iter().all(|setting| found.contains(setting))
            }
        }
    }

    fn is_quiet_port(&self) -> bool {
        quiet_port().iter().all(|setting| self.port.contains(setting))
    }

    fn of(link: &LinkMessage) -> Self {
        let mut device = Self {
            index: link.header.index,
            mtu: None,
            address: Vec::new(),
            bridge: None,
            up: link.header.flags.contains(LinkFlags::Up),
            vxlan: None,
            port: link::bridge_port(link).unwrap_or_default().to_vec(),
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(bytes) => device.mtu = Some(*bytes),
                LinkAttribute::Address(address) => device.address.clone_from(address),
                LinkAttribute::Controller(index) => device.bridge = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Data(InfoData::Vxlan(settings)) = info {
                            device.vxlan = Some(settings.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        device
    }
}

/// The settings that the device is created with. No UDP checksum, as the inner packets have checksums of
/// their own.
fn settings(plan: &TunnelPlan) -> Vec<InfoVxlan> {
    vec![
        InfoVxlan::Id(plan.vni),
        InfoVxlan::Local(plan.node_address),
        InfoVxlan::Ttl(TTL),
        InfoVxlan::Learning(false),
        InfoVxlan::Port(plan.port),
        InfoVxlan::UDPCsum(false),
    ]
}

/// The settings of a bridge port that gets only frames addressed to it.
fn quiet_port() -> Vec<InfoBridgePort> {
    vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
    ]
}
