//! The bridges of this network namespace by name. Those of containers can have any name, so the kind counts.

use std::collections::BTreeSet;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// The names of all bridges.
///
/// # Errors
/// When the kernel does not list its links.
pub fn bridges() -> Result<BTreeSet<String>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let listed = Connection::open(NETLINK_ROUTE)?.dump(&Message::encode(&request, 0))?;
    let mut names = BTreeSet::new();
    for message in listed {
        let RouteNetlinkMessage::NewLink(link) = message.decode()? else {
            continue;
        };
        let is_bridge = link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)))
        });
        if is_bridge {
            names.extend(
                link.attributes
                    .into_iter()
                    .filter_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name),
                        _ => None,
                    }),
            );
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::own_network::{in_namespace, ip};

    #[test]
    fn bridges_are_known_by_their_kind() {
        in_namespace(|| async {
            ip("link add lan type bridge");
            ip("link add docker7 type veth peer name end7 master lan");
            assert_eq!(bridges().unwrap(), ["lan".to_owned()].into());
        });
    }
}
