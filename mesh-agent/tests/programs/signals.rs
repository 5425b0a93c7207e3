//! What the programs count of how backends answer.

use std::{thread, time::Duration};

use mesh_agent::{
    datapath::{AnswerTimes, Datapath as _, Signals},
    model::Location,
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, backend_key, from_peer, frontend, out_of_container, target},
    frames::{ACK, Packet, REPLY, RST, SYN},
    idle::on_a_node,
    node::Node,
};

/// Longer than a packet takes from XDP to tc, and than a span of the clock that openings have.
const SENT_AGAIN: Duration = Duration::from_millis(300);

fn signals(node: &mut Node) -> Signals {
    let counters = node.datapath().counters().expect("the counters can be read");
    assert!(
        !counters.signals.contains_key(&backend_key(DNS, 5)),
        "UDP has none"
    );
    counters.signals[&backend_key(WEB, 5)].clone()
}

/// A client's packet at both hooks, and the backend's answer as it passes this node.
fn client_sends(node: &mut Node, flags: u8) {
    let frame = Packet::tcp(arriving(), CLIENT, frontend(WEB), flags).frame();
    node.xdp(&frame);
    node.tc_uplink(&frame);
}

fn local_replica_sends(node: &mut Node, flags: u8) {
    node.tc_container(&Packet::tcp(out_of_container(), target(WEB), CLIENT, flags).frame());
}

fn remote_replica_sends(node: &mut Node, flags: u8) {
    let inner = Packet::tcp(out_of_container(), frontend(WEB), CLIENT, flags);
    node.xdp(&from_peer(WEB, REPLY).around(&inner));
}

fn with_each_location(test: impl Fn(&mut Node, fn(&mut Node, u8)) + Send + Sync) {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        test(node, local_replica_sends);
    });
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        test(node, remote_replica_sends);
    });
}

#[test]
fn the_time_to_an_answer_is_measured() {
    with_each_location(|node, replica_sends| {
        client_sends(node, SYN);
        thread::sleep(Duration::from_millis(30));
        replica_sends(node, SYN | ACK);
        client_sends(node, ACK);
        replica_sends(node, ACK);
        let Signals { answers, .. } = signals(node);
        assert_eq!(answers.count(), 1, "{answers:?}");
        let took = Duration::from_nanos(answers.sum);
        assert!(took >= Duration::from_millis(29), "{took:?}");
        let bucket = AnswerTimes::BOUNDS.partition_point(|bound| *bound < answers.sum);
        assert_eq!(answers.counts[bucket], 1, "{answers:?}");
        let expected = Signals {
            answers: answers.clone(),
            ..Signals::default()
        };
        assert_eq!(signals(node), expected);
    });
}

#[test]
fn refusals_silence_and_resets_are_counted() {
    with_each_location(|node, replica_sends| {
        client_sends(node, SYN);
        thread::sleep(SENT_AGAIN);
        client_sends(node, SYN);
        thread::sleep(SENT_AGAIN);
        client_sends(node, SYN);
        replica_sends(node, RST | ACK);
        client_sends(node, SYN);
        replica_sends(node, SYN | ACK);
        client_sends(node, ACK);
        replica_sends(node, RST | ACK);
        client_sends(node, SYN);
        replica_sends(node, SYN | ACK);
        client_sends(node, ACK);
        client_sends(node, RST | ACK);
        let mut found = signals(node);
        assert_eq!(found.answers.count(), 2, "{found:?}");
        found.answers = AnswerTimes::default();
        let expected = Signals {
            refused: 1,
            unanswered: 1,
            syns_retransmitted: 2,
            reset_by_clients: 1,
            reset_by_backend: 1,
            answers: AnswerTimes::default(),
        };
        assert_eq!(found, expected);
    });
}

#[test]
fn a_new_backend_begins_with_nothing_and_an_agent_that_starts_keeps_what_was_counted() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        client_sends(node, SYN);
        local_replica_sends(node, RST | ACK);
        assert_eq!(signals(node).refused, 1);
        node.load();
        node.apply(&state);
        assert_eq!(signals(node).refused, 1);
        let without = node.without_services();
        node.apply(&without);
        node.apply(&state);
        assert_eq!(signals(node).refused, 0);
    });
}
