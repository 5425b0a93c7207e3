//! The watcher against a real kernel, in a network namespace of its own. Needs root.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use mesh_support::watched::Watched as _;
use tokio::{io::AsyncWriteExt, sync::watch, time::timeout};

use super::{Interest, NetworkOptions, watch_network};
use crate::{
    discovery::{
        NetworkState, default_route_interfaces,
        own_network::{in_namespace, ip},
    },
    model::{MacAddress, NextHop},
};

const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);

struct Watched {
    interest: watch::Sender<Interest>,
    state: watch::Receiver<Option<NetworkState>>,
}

impl Watched {
    fn start(uplinks: &[&str]) -> Self {
        let (interest, receiver) = watch::channel(Interest::default());
        let options = NetworkOptions {
            uplinks: uplinks.iter().map(ToString::to_string).collect(),
            service_address: SERVICE_ADDRESS,
        };
        let (watcher, state) = watch_network(options, receiver).unwrap();
        tokio::spawn(watcher.run());
        Self { interest, state }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&NetworkState) -> bool) -> NetworkState {
        let wait = self
            .state
            .wait_for(|state| state.as_ref().is_some_and(&condition));
        let found = timeout(Duration::from_secs(5), wait)
            .await
            .map(|found| found.unwrap().clone());
        match found {
            Ok(state) => state.unwrap(),
            Err(_) => panic!(
                "timed out waiting until {what}; last state: {:?}",
                self.state.current()
            ),
        }
    }
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A veth pair. The far end is in the same namespace, so it answers nothing.
fn wire() {
    ip("link add wire0 address 02:00:00:00:00:01 type veth peer name wire1");
    ip("link set wire0 up");
    ip("link set wire1 up");
    ip("address add 192.0.2.1/24 dev wire0");
}

#[test]
fn addresses_come_and_go() {
    in_namespace(|| async {
        wire();
        ip("link set lo up");
        let mut watched = Watched::start(&[]);
        let state = watched.until("it has listed", |_| true).await;
        assert_eq!(state.addresses, BTreeSet::from([address("192.0.2.1")]));
        ip("address add 198.51.100.7/32 dev lo");
        ip("address add 169.254.96.1/32 dev lo");
        watched
            .until("the floating address is there", |state| {
                state.addresses == BTreeSet::from([address("192.0.2.1"), address("198.51.100.7")])
            })
            .await;
        ip("address del 198.51.100.7/32 dev lo");
        watched
            .until("it is gone", |state| {
                state.addresses == BTreeSet::from([address("192.0.2.1")])
            })
            .await;
    });
}

#[test]
fn ipv6_addresses_come_when_no_one_else_has_them_and_go() {
    in_namespace(|| async {
        // The wire's other end is in this namespace, and answers for the address that the first one tries.
        ip("link add wire0 type veth peer name wire1");
        ip("address add fd00::dd/64 dev wire1 nodad");
        ip("link set wire0 up");
        ip("link set wire1 up");
        ip("link set lo up");
        ip("link add mesh0 type bridge");
        ip("address add fd00::5/64 dev mesh0 nodad");
        ip("address add 2001:db8::7/128 dev lo");
        let found = |texts: &[&str]| -> BTreeSet<Ipv6Addr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let mut watched = Watched::start(&[]);
        let state = watched.until("it has listed", |_| true).await;
        assert_eq!(state.ipv6_addresses, found(&["fd00::dd", "2001:db8::7"]));
        ip("address add fd00::dd/64 dev wire0");
        ip("address add fd00::1/64 dev wire0");
        let state = watched
            .until("the address is verified", |state| {
                state.ipv6_addresses.contains(&"fd00::1".parse().unwrap())
            })
            .await;
        assert_eq!(
            state.ipv6_addresses,
            found(&["fd00::1", "fd00::dd", "2001:db8::7"])
        );
        ip("address del fd00::dd/64 dev wire1");
        let two = found(&["fd00::1", "2001:db8::7"]);
        watched
            .until("the other's address is gone", |state| state.ipv6_addresses == two)
            .await;
        ip("address del fd00::1/64 dev wire0");
        ip("address del 2001:db8::7/128 dev lo");
        watched
            .until("all are gone", |state| state.ipv6_addresses.is_empty())
            .await;
    });
}

fn uplinks(state: &NetworkState) -> Vec<String> {
    state.uplinks.keys().cloned().collect()
}

#[test]
fn whatever_clients_or_peers_can_send_by_is_an_uplink() {
    in_namespace(|| async {
        wire();
        ip("link set lo up");
        for card in ["named", "public", "toward"] {
            ip(&format!("link add {card}0 type veth peer name {card}1"));
        }
        let mut watched = Watched::start(&["named0"]);
        let state = watched.until("it has listed", |_| true).await;
        assert_eq!(
            uplinks(&state),
            ["named0"],
            "what is named is an uplink even when it is down"
        );
        ip("link set named0 mtu 9000");
        watched
            .until("its MTU has changed", |state| state.uplinks["named0"].mtu == 9000)
            .await;

        watched
            .interest
            .send_modify(|interest| interest.node_address = Some(address("192.0.2.1")));
        watched
            .until("the interface of the node's address is one too", |state| {
                uplinks(state) == ["named0", "wire0"]
            })
            .await;

        ip("link add advertised0 type veth peer name advertised1");
        ip("link set advertised0 up");
        ip("address add 198.18.0.1/24 dev advertised0");
        watched
            .interest
            .send_modify(|interest| interest.advertised_address = Some(address("198.18.0.1")));
        watched
            .until("the interface of the advertised address is one too", |state| {
                uplinks(state) == ["advertised0", "named0", "wire0"]
            })
            .await;
        ip("link del advertised0");

        ip("link set public0 up");
        ip("link set public1 up");
        ip("address add 203.0.113.1/24 dev public0");
        ip("route add default via 203.0.113.254");
        watched
            .until("the interface of the default route is one too", |state| {
                uplinks(state) == ["named0", "public0", "wire0"]
            })
            .await;

        let peer = address("198.51.100.9");
        watched
            .interest
            .send_modify(|interest| interest.peers = BTreeSet::from([peer]));
        let state = watched
            .until("the peer's route is known", |state| {
                state.peer_interfaces.contains_key(&peer)
            })
            .await;
        assert_eq!(state.peer_interfaces[&peer], "public0");
        ip("link set toward0 up");
        ip("link set toward1 up");
        ip("route add 198.51.100.0/24 dev toward0");
        let state = watched
            .until("the interface of the peer's own route is one too", |state| {
                uplinks(state) == ["named0", "public0", "toward0", "wire0"]
            })
            .await;
        assert_eq!(state.peer_interfaces[&peer], "toward0");

        ip("link del toward0");
        ip("link del public0");
        watched
            .until("they are gone", |state| uplinks(state) == ["named0", "wire0"])
            .await;
        ip("link set wire0 down");
        ip("link set wire0 name card0");
        watched
            .until("an uplink is known by its new name", |state| {
                uplinks(state) == ["card0", "named0"]
            })
            .await;
    });
}

#[test]
fn cards_with_routers_of_their_own_are_uplinks_and_rules_about_the_nodes_address_hold() {
    in_namespace(|| async {
        wire();
        ip("link set lo up");
        for card in ["public", "modern"] {
            ip(&format!("link add {card}0 type veth peer name {card}1"));
            ip(&format!("link set {card}0 up"));
            ip(&format!("link set {card}1 up"));
        }
        ip("address add 203.0.113.1/24 dev public0");
        ip("route add default via 203.0.113.254");
        let mut watched = Watched::start(&[]);
        watched
            .until("the default route is known", |state| {
                uplinks(state) == ["public0"]
            })
            .await;
        ip("route add default via 192.0.2.254 dev wire0 table 100");
        watched
            .until("the other table's card is an uplink", |state| {
                uplinks(state) == ["public0", "wire0"]
            })
            .await;
        ip("-6 route add default dev modern0");
        watched
            .until("so is that of IPv6's default route", |state| {
                uplinks(state) == ["modern0", "public0", "wire0"]
            })
            .await;
        assert_eq!(
            default_route_interfaces()
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>(),
            uplinks(&watched.state.current().clone().unwrap()),
            "the doctor sees the same"
        );

        let peer = address("198.51.100.9");
        watched.interest.send_modify(|interest| {
            interest.node_address = Some(address("192.0.2.1"));
            interest.peers = BTreeSet::from([peer]);
        });
        let leads_by = |interface: &'static str| {
            move |state: &NetworkState| {
                state
                    .peer_interfaces
                    .get(&peer)
                    .is_some_and(|found| found == interface)
            }
        };
        watched
            .until("the peer is beyond the default route", leads_by("public0"))
            .await;
        ip("rule add from 192.0.2.1 lookup 100");
        watched
            .until("the rule about the node's address is followed", leads_by("wire0"))
            .await;
        // As behind NAT.
        watched
            .interest
            .send_modify(|interest| interest.node_address = Some(address("192.0.2.99")));
        watched
            .until("an address of elsewhere has no rule", leads_by("public0"))
            .await;
    });
}

/// As of a node that a routing daemon connects to two switches.
#[test]
fn every_card_of_a_multipath_route_to_a_peer_is_an_uplink_whatever_its_gateways_addresses_are() {
    in_namespace(|| async {
        wire();
        ip("link add second0 type veth peer name second1");
        ip("link set second0 up");
        ip("link set second1 up");
        let mut watched = Watched::start(&[]);
        let peer = address("198.51.100.9");
        watched
            .interest
            .send_modify(|interest| interest.peers = BTreeSet::from([peer]));
        ip(
            "route add 198.51.100.0/24 nexthop via inet6 fe80::1 dev wire0 nexthop via inet6 fe80::1 dev second0",
        );
        let state = watched
            .until("both are uplinks", |state| uplinks(state) == ["second0", "wire0"])
            .await;
        assert!(
            state.peer_interfaces.contains_key(&peer),
            "packets to the peer leave by one of them"
        );
        assert!(state.next_hops.is_empty(), "the kernel resolves it");
        ip("route replace 198.51.100.0/24 dev second0");
        watched
            .until("one is left", |state| uplinks(state) == ["second0"])
            .await;
    });
}

#[test]
fn loopback_is_no_uplink_whatever_address_it_has() {
    in_namespace(|| async {
        ip("link set lo up");
        ip("address add 192.0.2.1/32 dev lo");
        let mut watched = Watched::start(&["lo"]);
        watched.interest.send_modify(|interest| {
            interest.node_address = Some(address("192.0.2.1"));
            interest.peers = BTreeSet::from([address("192.0.2.1")]);
        });
        let state = watched
            .until("it has looked the peer up", |state| {
                !state.interest.peers.is_empty()
            })
            .await;
        assert_eq!(uplinks(&state), Vec::<String>::new());
        assert!(state.peer_interfaces.is_empty());
    });
}

#[test]
fn a_layer_3_device_that_leads_to_a_peer_is_an_uplink_and_needs_no_neighbours() {
    in_namespace(|| async {
        ip("tuntap add tun0 mode tun");
        ip("address add 192.0.2.1/24 dev tun0");
        ip("link set tun0 up");
        let mut watched = Watched::start(&[]);
        let peer = address("192.0.2.2");
        watched.interest.send_modify(|interest| {
            interest.node_address = Some(address("192.0.2.1"));
            interest.peers = BTreeSet::from([peer]);
        });
        let state = watched
            .until("the peer's route is known", |state| {
                state.peer_interfaces.contains_key(&peer)
            })
            .await;
        assert_eq!(uplinks(&state), ["tun0"]);
        let tun = state.uplinks["tun0"];
        assert_eq!((tun.mac, tun.mtu), (None, 1500));
        assert_eq!(state.peer_interfaces[&peer], "tun0");
        assert_eq!(state.next_hops[&peer], NextHop::layer3(tun.index, Some(1500)));
        assert!(state.unusable_uplinks.is_empty(), "{state:?}");
    });
}

#[test]
fn a_bridge_that_has_the_node_address_is_an_uplink_and_its_ports_are_not_containers() {
    in_namespace(|| async {
        wire();
        ip("link add lan type bridge");
        ip("link set wire0 master lan");
        let mut watched = Watched::start(&[]);
        watched
            .until("its port could be a container's", |state| {
                state.container_interfaces.len() == 1
            })
            .await;
        ip("address del 192.0.2.1/24 dev wire0");
        ip("address add 192.0.2.1/24 dev lan");
        ip("link set lan up");
        watched
            .interest
            .send_modify(|interest| interest.node_address = Some(address("192.0.2.1")));
        watched
            .until("the bridge is the uplink", |state| {
                uplinks(state) == ["lan"] && state.container_interfaces.is_empty()
            })
            .await;
    });
}

#[test]
fn a_peer_has_a_next_hop_as_soon_as_its_neighbour_is_known() {
    in_namespace(|| async {
        wire();
        let mut watched = Watched::start(&[]);
        let peer = address("192.0.2.2");
        let beyond = address("198.51.100.2");
        watched
            .interest
            .send_modify(|interest| interest.peers = BTreeSet::from([peer, beyond]));
        watched
            .until("it has listed", |state| state.next_hops.is_empty())
            .await;
        ip("neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:22 dev wire0 nud reachable");
        let state = watched
            .until("the neighbour is known", |state| {
                state.next_hops.contains_key(&peer)
            })
            .await;
        let hop = state.next_hops[&peer];
        assert_eq!(hop.source_mac, MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(hop.destination_mac, MacAddress([2, 0, 0, 0, 0, 0x22]));

        ip("neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:23 dev wire0 nud reachable");
        watched
            .until("its address has changed", |state| {
                state.next_hops[&peer].destination_mac == MacAddress([2, 0, 0, 0, 0, 0x23])
            })
            .await;

        ip("route add 198.51.100.0/24 via 192.0.2.2");
        let state = watched
            .until("the peer behind it is reached", |state| {
                state.next_hops.contains_key(&beyond)
            })
            .await;
        assert_eq!(state.next_hops[&beyond], state.next_hops[&peer]);

        ip("route replace 198.51.100.0/24 via 192.0.2.2 mtu 1400");
        let state = watched
            .until("the route has an MTU of its own", |state| {
                state.next_hops[&beyond].mtu == Some(1400)
            })
            .await;
        assert_eq!(state.next_hops[&peer].mtu, Some(1500));
        ip("link set wire0 mtu 1300");
        watched
            .until("the interface carries less", |state| {
                state.next_hops[&beyond].mtu == Some(1300)
            })
            .await;

        ip("link set wire0 down");
        watched
            .until("there is no next hop", |state| state.next_hops.is_empty())
            .await;
    });
}

#[test]
fn the_kernel_is_asked_to_resolve_a_peer_that_answers() {
    in_namespace(|| async {
        wire();
        // The far end lives in another namespace, so that it answers for its address.
        let name = format!("mesh-test-{}", std::process::id());
        ip(&format!("netns add {name}"));
        let far = FarNamespace(name);
        ip(&format!("link set wire1 netns {}", far.0));
        ip(&format!("-n {} link set wire1 up", far.0));
        ip(&format!("-n {} address add 192.0.2.2/24 dev wire1", far.0));
        let mut watched = Watched::start(&[]);
        let peer = address("192.0.2.2");
        watched
            .interest
            .send_modify(|interest| interest.peers = BTreeSet::from([peer]));
        watched
            .until("the peer is resolved", |state| {
                state.next_hops.contains_key(&peer)
            })
            .await;
    });
}

#[test]
fn veths_on_bridges_of_any_name_are_containers_interfaces() {
    in_namespace(|| async {
        let mut watched = Watched::start(&[]);
        ip("link add free0 type veth peer name free1");
        ip("tuntap add tap0 mode tap");
        for (port, name) in ["docker_gwbridge", "appbr"].iter().enumerate() {
            ip(&format!("link add {name} type bridge"));
            ip(&format!("link add port{port} type veth peer name peer{port}"));
            ip(&format!("link set port{port} master {name}"));
        }
        // A virtual machine's interface: not a veth.
        ip("link set tap0 master appbr");
        watched
            .until("the bridges' veths are there, and no others", |state| {
                state.container_interfaces.len() == 2
            })
            .await;
        ip("link del appbr");
        watched
            .until("one is free", |state| state.container_interfaces.len() == 1)
            .await;
        ip("link set port0 nomaster");
        watched
            .until("the other is free", |state| state.container_interfaces.is_empty())
            .await;
    });
}

/// A routing daemon's work goes on while a route that matters changes.
#[test]
fn a_change_of_a_peers_route_is_followed_beside_ten_thousand_others() {
    in_namespace(|| async {
        wire();
        ip("link add other0 type veth peer name other1");
        ip("link set other0 up");
        ip("link set other1 up");
        let mut batch = String::new();
        for number in 0..10_000 {
            batch += &format!(
                "route replace 10.{}.{}.0/24 dev wire0\n",
                number / 250,
                number % 250
            );
        }
        let mut watched = Watched::start(&[]);
        let peer = address("198.51.100.2");
        watched
            .interest
            .send_modify(|interest| interest.peers = BTreeSet::from([peer]));
        watched
            .until("it has looked the peer up", |state| {
                !state.interest.peers.is_empty()
            })
            .await;
        let storm = tokio::spawn(async move {
            for _ in 0..3 {
                let mut daemon = tokio::process::Command::new("ip")
                    .args(["-batch", "-"])
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                daemon
                    .stdin
                    .take()
                    .unwrap()
                    .write_all(batch.as_bytes())
                    .await
                    .unwrap();
                assert!(daemon.wait().await.unwrap().success());
            }
        });
        for interface in ["wire0", "other0", "wire0"] {
            ip(&format!("route replace 198.51.100.0/24 dev {interface}"));
            let begin = std::time::Instant::now();
            watched
                .until("the peer's interface has changed", |state| {
                    state
                        .peer_interfaces
                        .get(&peer)
                        .is_some_and(|found| found == interface)
                })
                .await;
            println!("{interface}: followed after {:?}", begin.elapsed());
        }
        storm.await.unwrap();
        ip("route add default dev other0");
        watched
            .until("the default route is found among them", |state| {
                state.uplinks.contains_key("other0")
            })
            .await;
    });
}

/// A named namespace that is removed at the end of the test, however it ends.
struct FarNamespace(String);

impl Drop for FarNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}
