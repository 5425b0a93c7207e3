//! How often a node looks up the way to a client.

use super::*;
use crate::{
    abi::{DropReason, Hook, NextHop},
    headers::PROTOCOL_TCP,
    testing::{ACK, Replica, SYN, TestFrame, TestTables, at, reply_to, run, tcp, view},
    verdict::Action,
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
/// Longer than a moment of the test tables' clock.
const A_MOMENT: u64 = 1 << 28;

/// A way by an interface.
fn by(interface: u32, mac: [u8; 6], mtu: u16) -> Route {
    Route::Resolved(NextHop {
        interface,
        source_mac: [2, 3, 0, 0, 0, interface as u8],
        destination_mac: mac,
        inner_mtu: mtu,
        ..NextHop::default()
    })
}

const ROUTER: [u8; 6] = [2, 4, 5, 6, 7, 8];

/// An open connection to a replica, of which the client's node sees the replies at a hook.
struct Connection {
    entry_node: TestTables,
    backend_node: Option<TestTables>,
    /// What the container has received.
    received: TestFrame,
}

impl Connection {
    fn to(replica: Replica) -> Self {
        let entry_node = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[replica]);
        let backend_node =
            (replica.node != 1).then(|| TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[replica]));
        let mut received = tcp(at(CLIENT), at(FRONTEND), SYN);
        let mut action = run(&entry_node, Hook::TcUplink, &mut received);
        if let Some(node) = &backend_node {
            received = received.received();
            action = run(node, Hook::TcUplink, &mut received);
        }
        assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
        Self {
            entry_node,
            backend_node,
            received,
        }
    }

    /// Sends a reply, which the kernel would send by `route`. What becomes of it, and whether that was
    /// looked up.
    fn reply(&self, length: usize, route: Route) -> (Action, TestFrame, bool) {
        let reply = reply_to(&view(&self.received), ACK, &vec![0; length]);
        let (hook, reply) = match &self.backend_node {
            None => (Hook::TcContainer, reply),
            Some(node) => {
                let mut reply = reply;
                let action = run(node, Hook::TcContainer, &mut reply);
                assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
                (Hook::TcUplink, reply.received())
            }
        };
        let mut reply = reply.routed(route);
        let action = run(&self.entry_node, hook, &mut reply);
        let is_asked = reply.asked.get().is_some();
        (action, reply, is_asked)
    }
}

const REPLICAS: [Replica; 2] = [Replica::on(1, 1), Replica::on(2, 1)];

#[test]
fn the_way_of_a_flows_replies_is_looked_up_once_in_a_moment() {
    for replica in REPLICAS {
        let connection = Connection::to(replica);
        let clock = &connection.entry_node.clock;
        for interface in [3, 4] {
            clock.set(clock.get() + A_MOMENT);
            for is_first in [true, false, false] {
                // Where routes change in between, the way stays for the moment.
                let route = if is_first {
                    by(interface, ROUTER, 1500)
                } else {
                    by(9, [0xe; 6], 1500)
                };
                let (action, sent, is_asked) = connection.reply(100, route);
                assert_eq!((action, is_asked), (Action::Transmit { interface }, is_first));
                assert_eq!(sent.bytes[..6], ROUTER);
                assert_eq!(sent.bytes[6..12], [2, 3, 0, 0, 0, interface as u8]);
            }
        }
    }
}

#[test]
fn a_reply_that_the_known_way_may_not_carry_is_looked_up() {
    for replica in REPLICAS {
        let connection = Connection::to(replica);
        connection.entry_node.clock.set(A_MOMENT);
        connection.reply(100, by(3, ROUTER, 300));
        let (_, _, is_asked) = connection.reply(260, by(3, ROUTER, 300));
        assert!(!is_asked, "260 bytes and 40 of headers");
        let (_, _, is_asked) = connection.reply(261, Route::TooBig { mtu: 300 });
        assert!(is_asked);
        let hooks = [Hook::TcContainer, Hook::TcUplink];
        let drops = hooks.map(|hook| connection.entry_node.drops(hook, DropReason::TooBig));
        assert_eq!(drops.iter().sum::<u32>(), 1);
    }
}

#[test]
fn a_way_that_is_not_resolved_or_takes_no_frames_is_not_kept() {
    for replica in REPLICAS {
        let connection = Connection::to(replica);
        connection.entry_node.clock.set(A_MOMENT);
        // A layer 3 device's: XDP cannot send there, and looks for itself.
        for route in [by(3, [0; 6], 1500), Route::Unresolved { interface: 3 }] {
            for _ in 0..2 {
                let (_, _, is_asked) = connection.reply(100, route);
                assert!(is_asked, "{route:?}");
            }
        }
    }
}
