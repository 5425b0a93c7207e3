use netlink_packet_core::NetlinkHeader;
use netlink_packet_route::route::RouteHeader;

use super::*;

fn effect_of(destination: Ipv4Addr, length: u8, table: u8) -> Effect {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = length;
    route.header.table = table;
    if length > 0 {
        let destination = RouteAddress::Inet(destination);
        route.attributes.push(RouteAttribute::Destination(destination));
    }
    let message = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)),
    );
    Facts::default().absorb(message, &BTreeSet::from([Ipv4Addr::new(192, 0, 2, 9)]))
}

#[test]
fn only_routes_to_a_peer_or_to_everything_matter() {
    let main = RouteHeader::RT_TABLE_MAIN;
    for number in 0..10_000_u32 {
        let other = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + (number << 8));
        assert_eq!(effect_of(other, 24, main), Effect::None, "{other}");
    }
    let peer = Ipv4Addr::new(192, 0, 2, 9);
    let net = Ipv4Addr::new(192, 0, 2, 0);
    for (destination, length) in [(peer, 32), (net, 24), (Ipv4Addr::new(128, 0, 0, 0), 1)] {
        assert_eq!(effect_of(destination, length, main), Effect::Peers, "/{length}");
    }
    assert_eq!(effect_of(net, 29, main), Effect::None);
    assert_eq!(effect_of(peer, 32, 100), Effect::Peers, "by a routing rule");
    assert_eq!(effect_of(peer, 32, libc::RT_TABLE_LOCAL), Effect::None);
    assert_eq!(effect_of(Ipv4Addr::UNSPECIFIED, 0, main), Effect::Routes);
}

/// The state of a node whose one link, of a type and with flags, is named as an uplink.
fn state_with(link_type: LinkLayerType, flags: LinkFlags) -> NetworkState {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.header.link_layer_type = link_type;
    link.header.flags = flags;
    link.attributes = vec![
        LinkAttribute::IfName("link".to_owned()),
        LinkAttribute::Mtu(1400),
        // An address of the layer below, as GRE has it.
        LinkAttribute::Address(vec![10, 0, 0, 1]),
    ];
    let mut facts = Facts::default();
    facts.add_link(&link);
    let options = NetworkOptions {
        uplinks: vec!["link".to_owned()],
        service_address: Ipv4Addr::new(169, 254, 96, 1),
    };
    facts.state(&options, &Interest::default())
}

#[test]
fn point_to_point_devices_of_layer_3_are_uplinks_without_a_mac_address() {
    let uplink = HostInterface {
        index: 7,
        mac: None,
        mtu: 1400,
        has_vlans: false,
    };
    // tun and WireGuard; PPP; IP-in-IP; GRE; a modem.
    for link_type in [
        LinkLayerType::None,
        LinkLayerType::Ppp,
        LinkLayerType::Tunnel,
        LinkLayerType::Ipgre,
        LinkLayerType::Rawip,
    ] {
        let state = state_with(link_type, LinkFlags::Pointopoint | LinkFlags::Noarp);
        assert_eq!(
            state.uplinks,
            [("link".to_owned(), uplink)].into(),
            "{link_type:?}"
        );
        assert!(state.unusable_uplinks.is_empty(), "{link_type:?}");
    }
}

#[test]
fn other_links_without_a_mac_address_are_named_with_the_reason() {
    let others = [
        (LinkLayerType::Infiniband, LinkFlags::Broadcast),
        // Where the far end is a neighbour's matter.
        (LinkLayerType::Ipgre, LinkFlags::Noarp),
        // The kernel does not take the header off there.
        (LinkLayerType::Slip, LinkFlags::Pointopoint | LinkFlags::Noarp),
    ];
    for (link_type, flags) in others {
        let state = state_with(link_type, flags);
        assert!(state.uplinks.is_empty(), "{link_type:?}");
        assert_eq!(state.unusable_uplinks["link"], NO_HOOK, "{link_type:?}");
    }
}

/// An Ethernet link, by the last byte of its address.
fn link(index: u32, name: &str, last: u8, more: &[LinkAttribute]) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, last]),
    ];
    link.attributes.extend_from_slice(more);
    link
}

fn info(kind: InfoKind) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])
}

#[test]
fn a_card_is_known_to_have_vlans_while_there_is_one() {
    let vlan = link(9, "card.5", 1, &[LinkAttribute::Link(7), info(InfoKind::Vlan)]);
    let mut facts = Facts::default();
    facts.add_link(&link(7, "card", 1, &[]));
    facts.add_link(&link(
        8,
        "other",
        1,
        &[LinkAttribute::Link(7), info(InfoKind::MacVlan)],
    ));
    let options = NetworkOptions {
        uplinks: vec!["card".to_owned(), "card.5".to_owned()],
        service_address: Ipv4Addr::new(169, 254, 96, 1),
    };
    let have_vlans = |facts: &Facts| -> Vec<_> {
        let uplinks = facts.state(&options, &Interest::default()).uplinks;
        uplinks.values().map(|uplink| uplink.has_vlans).collect()
    };
    assert_eq!(have_vlans(&facts), [false]);
    facts.add_link(&vlan);
    assert_eq!(have_vlans(&facts), [true, false]);
    facts.remove_link(&vlan);
    assert_eq!(have_vlans(&facts), [false]);
}

#[test]
fn the_nodes_mac_addresses_are_those_of_all_but_containers_veths() {
    let mut facts = Facts::default();
    facts.add_link(&link(7, "card", 1, &[]));
    facts.add_link(&link(
        8,
        "child",
        2,
        &[LinkAttribute::Link(7), info(InfoKind::MacVlan)],
    ));
    facts.add_link(&link(9, "bridge", 3, &[info(InfoKind::Bridge)]));
    facts.add_link(&link(
        10,
        "veth",
        4,
        &[LinkAttribute::Controller(9), info(InfoKind::Veth)],
    ));
    let options = NetworkOptions {
        uplinks: vec!["card".to_owned()],
        service_address: Ipv4Addr::new(169, 254, 96, 1),
    };
    let macs = |facts: &Facts| facts.state(&options, &Interest::default()).macs;
    assert_eq!(
        macs(&facts),
        [1, 2, 3].map(|last| MacAddress([2, 0, 0, 0, 0, last])).into()
    );
    facts.add_link(&link(7, "card", 5, &[]));
    assert!(
        macs(&facts).contains(&MacAddress([2, 0, 0, 0, 0, 5])),
        "its address changes"
    );
}

#[test]
fn an_event_of_a_wireless_card_does_not_change_its_link() {
    let mut link = link(7, "wlan0", 1, &[]);
    let mut facts = Facts::default();
    facts.add_link(&link);
    let options = NetworkOptions {
        uplinks: vec!["wlan0".to_owned()],
        service_address: Ipv4Addr::new(169, 254, 96, 1),
    };
    let before = facts.state(&options, &Interest::default());
    link.attributes.clear();
    assert_eq!(facts.add_link(&link), Effect::None);
    assert_eq!(facts.state(&options, &Interest::default()), before);
}
