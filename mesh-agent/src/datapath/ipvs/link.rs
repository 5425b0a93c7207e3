//! Looking up network interfaces, and configuring them as bridge ports, over rtnetlink. Imports the data
//! path's netlink only.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;

use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// Looks up an interface by what the request contains: its name or its index.
pub(super) fn look_up(
    connection: &mut Connection,
    request: LinkMessage,
) -> Result<Option<LinkMessage>, NetlinkError> {
    match connection.get(&Message::encode(&RouteNetlinkMessage::GetLink(request), 0)) {
        Ok(None) => Ok(None),
        Ok(Some(answer)) => match answer.decode()? {
            RouteNetlinkMessage::NewLink(link) => Ok(Some(link)),
            _ => Ok(None),
        },
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The interface's settings as a bridge port; `None` if it is not a bridge port.
pub(super) fn bridge_port(link: &LinkMessage) -> Option<&[InfoBridgePort]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => Some(settings.as_slice()),
            _ => None,
        }),
        _ => None,
    })
}

/// Changes an interface's settings as a bridge port; what is not named stays as it is.
pub(super) fn set_bridge_port(
    connection: &mut Connection,
    index: u32,
    settings: Vec<InfoBridgePort>,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)),
    ]));
    connection.request(&Message::encode(&RouteNetlinkMessage::NewLink(message), 0))
}
