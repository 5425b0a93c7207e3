//! What is counted of how backends answer.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::{ANSWER_TIMES, BackendSignals, Hook},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, CLIENT_ROUTE, FIN, RST, Replica, SYN, TestFrame, TestTables, at, reply_to, run, tcp, udp, view,
    },
};

const CLIENT: &str = "192.0.2.7:40000";
const CONTAINER: &str = "172.18.0.9:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const SECOND: u64 = 1_000_000_000;
const START: u64 = 10 * SECOND + 77;

/// An entry node, the node of the backend, and a client.
struct Lab {
    entry: TestTables,
    /// If it is another one.
    backend: Option<TestTables>,
    client: SocketAddrV4,
    hooks: &'static [Hook],
    /// What the backend got last.
    received: Option<TestFrame>,
}

impl Lab {
    fn new(replica: Replica, client: &str, hooks: &'static [Hook]) -> Self {
        let node = |number| {
            TestTables::node(number)
                .publish(PROTOCOL_TCP, 9200, &[replica])
                .publish(PROTOCOL_UDP, 9200, &[replica])
        };
        let entry = node(1);
        entry.clock.set(START);
        Self {
            entry,
            backend: (replica.node != 1).then(|| node(replica.node)),
            client: at(client),
            hooks,
            received: None,
        }
    }

    /// With a local backend, whose packets XDP leaves to tc; with a remote one; and with one for which the
    /// client's source is translated.
    fn all() -> [Self; 3] {
        [
            Self::new(Replica::on(1, 1), CLIENT, &[Hook::Xdp, Hook::TcUplink]),
            Self::new(Replica::on(2, 1), CLIENT, &[Hook::Xdp]),
            Self::new(Replica::on(2, 1), CONTAINER, &[Hook::TcContainer]),
        ]
    }

    fn wait(&self, nanoseconds: u64) {
        self.entry.clock.set(self.entry.clock.get() + nanoseconds);
    }

    fn client_sends(&mut self, flags: u8) {
        let frame = tcp(self.client, at(FRONTEND), flags);
        let mut arrived = frame.clone();
        for hook in self.hooks {
            arrived = frame.clone();
            run(&self.entry, *hook, &mut arrived);
        }
        if let Some(backend) = &self.backend {
            arrived = arrived.received();
            run(backend, Hook::TcUplink, &mut arrived);
        }
        self.received = Some(arrived);
    }

    fn backend_sends(&self, flags: u8) {
        let received = self.received.as_ref().expect("a packet of the client's");
        let mut frame = reply_to(&view(received), flags, b"").routed(CLIENT_ROUTE);
        let Some(backend) = &self.backend else {
            run(&self.entry, Hook::TcContainer, &mut frame);
            return;
        };
        run(backend, Hook::TcContainer, &mut frame);
        // XDP may leave it to tc.
        for hook in [Hook::Xdp, Hook::TcUplink] {
            run(&self.entry, hook, &mut frame.received().routed(CLIENT_ROUTE));
        }
    }

    fn open(&mut self) {
        self.client_sends(SYN);
        self.backend_sends(SYN | ACK);
        self.client_sends(ACK);
    }

    fn signals(&self) -> BackendSignals {
        if let Some(backend) = &self.backend {
            assert_eq!(backend.signals(0), BackendSignals::default(), "counted once");
        }
        self.entry.signals(0)
    }

    #[track_caller]
    fn check(&self, expected: &[(Signal, u64)]) {
        let counts = self.signals().counts;
        for signal in Signal::ALL {
            let of_signal = expected.iter().find(|(expected, _)| *expected == signal);
            let count = of_signal.map_or(0, |(_, count)| *count);
            assert_eq!(counts[signal as usize], count, "{signal:?} of {counts:?}");
        }
    }
}

#[test]
fn an_answer_is_counted_by_the_time_since_the_first_syn() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.wait(300_000);
        lab.backend_sends(SYN | ACK);
        lab.wait(SECOND);
        lab.backend_sends(SYN | ACK);
        lab.client_sends(ACK);
        lab.backend_sends(ACK);
        let signals = lab.signals();
        let mut expected = [0; ANSWER_TIMES.len() + 1];
        expected[answer_bucket(300_000)] = 1;
        assert_eq!(signals.answers, expected);
        assert!(signals.answer_time.abs_diff(300_000) <= 512, "{signals:?}");
        lab.check(&[]);
    }
}

#[test]
fn a_syn_that_was_sent_again_is_measured_from_the_first() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.wait(SECOND);
        lab.client_sends(SYN);
        lab.wait(1_000_000);
        lab.backend_sends(SYN | ACK);
        assert!(lab.signals().answer_time.abs_diff(1_001_000_000) <= 512);
        assert_eq!(lab.signals().answers[ANSWER_TIMES.len()], 1);
        lab.check(&[(Signal::SynRetransmitted, 1), (Signal::Unanswered, 1)]);
    }
}

#[test]
fn each_syn_that_is_sent_again_counts_and_its_connection_is_unanswered_once() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.check(&[]);
        for (wait, times) in [(1, 1), (2, 2), (4, 3)] {
            lab.wait(wait * SECOND);
            lab.client_sends(SYN);
            lab.check(&[(Signal::SynRetransmitted, times), (Signal::Unanswered, 1)]);
        }
        assert_eq!(lab.signals().answers, [0; 13]);
    }
}

/// The client has not received the answer.
#[test]
fn a_syn_sent_again_after_the_answer_is_no_fault_of_the_backend() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.backend_sends(SYN | ACK);
        lab.wait(SECOND);
        lab.client_sends(SYN);
        lab.check(&[(Signal::SynRetransmitted, 1)]);
        lab.client_sends(ACK);
        lab.wait(SECOND);
        // Of an earlier connection: its backend is to say so.
        lab.client_sends(SYN);
        lab.check(&[(Signal::SynRetransmitted, 1)]);
    }
}

#[test]
fn a_syn_that_two_programs_see_at_the_turn_of_the_clock_is_not_sent_again() {
    let lab = Lab::new(Replica::on(1, 1), CLIENT, &[]);
    lab.entry.clock.set((1 << 28) - 1);
    for hook in [Hook::Xdp, Hook::TcUplink] {
        run(&lab.entry, hook, &mut tcp(lab.client, at(FRONTEND), SYN));
        lab.wait(10_000);
    }
    lab.check(&[]);
}

#[test]
fn a_reset_in_place_of_an_answer_is_a_refusal() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.backend_sends(RST | ACK);
        lab.check(&[(Signal::Refused, 1)]);
        // The port's next connection.
        lab.wait(2 * SECOND);
        lab.client_sends(SYN);
        lab.backend_sends(RST | ACK);
        lab.check(&[(Signal::Refused, 2)]);
        assert_eq!(lab.signals().answers, [0; 13]);
    }
}

#[test]
fn an_open_connection_is_reset_once_by_the_side_that_begins() {
    for mut lab in Lab::all() {
        lab.open();
        lab.backend_sends(RST | ACK);
        lab.client_sends(RST);
        lab.check(&[(Signal::ResetByBackend, 1)]);
    }
    for mut lab in Lab::all() {
        lab.open();
        lab.client_sends(RST | ACK);
        lab.backend_sends(RST);
        lab.check(&[(Signal::ResetByClient, 1)]);
    }
}

#[test]
fn what_follows_the_end_of_a_connection_or_comes_before_it_opens_resets_nothing() {
    for mut lab in Lab::all() {
        lab.client_sends(SYN);
        lab.backend_sends(SYN | ACK);
        lab.client_sends(RST);
        lab.check(&[]);
    }
    for mut lab in Lab::all() {
        lab.open();
        lab.client_sends(FIN | ACK);
        lab.backend_sends(FIN | ACK);
        lab.backend_sends(RST);
        lab.client_sends(RST);
        lab.check(&[]);
    }
}

#[test]
fn what_a_node_sends_back_is_unanswered_by_the_backend_that_it_was_for() {
    let replicas = [Replica::on(2, 1), Replica::on(3, 2)];
    let entry = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &replicas);
    entry.clock.set(START);
    let mut frame = tcp(at(CLIENT), at(FRONTEND), SYN);
    run(&entry, Hook::TcUplink, &mut frame);
    let mut frame = frame.received();
    run(&TestTables::node(2), Hook::TcUplink, &mut frame);
    entry.clock.set(START + SECOND);
    run(&entry, Hook::TcUplink, &mut frame.received());
    let unanswered = |backend| entry.signals(backend).counts[Signal::Unanswered as usize];
    assert_eq!((unanswered(0), unanswered(1)), (1, 0));
}

#[test]
fn an_entry_node_that_sees_no_answers_counts_what_clients_send() {
    let mut lab = Lab::new(Replica::on(2, 1), CLIENT, &[Hook::Xdp]);
    lab.entry.config_mut().direct_return = 1;
    lab.client_sends(SYN);
    lab.wait(SECOND);
    lab.client_sends(SYN);
    lab.check(&[(Signal::SynRetransmitted, 1)]);
    lab.client_sends(ACK);
    lab.client_sends(RST);
    lab.check(&[(Signal::SynRetransmitted, 1), (Signal::ResetByClient, 1)]);
}

#[test]
fn datagrams_give_no_signal() {
    let lab = Lab::new(Replica::on(1, 1), CLIENT, &[]);
    for _ in 0..3 {
        run(
            &lab.entry,
            Hook::TcUplink,
            &mut udp(lab.client, at(FRONTEND), b"x"),
        );
        lab.wait(SECOND);
    }
    assert_eq!(lab.entry.signals(1), BackendSignals::default());
}

/// One field has first when the backend was asked, and then the sequence number that the end is judged by.
#[test]
fn what_was_noted_at_the_beginning_is_no_sequence_number_later() {
    for mut lab in Lab::all() {
        // A moment that is far from the sequence numbers here, 0 and 0x7000_0000.
        lab.entry.clock.set(0x3000_0000 << 8);
        lab.client_sends(SYN);
        lab.backend_sends(SYN | ACK);
        lab.client_sends(ACK);
        lab.client_sends(RST);
        lab.check(&[(Signal::ResetByClient, 1)]);
    }
}

#[test]
fn a_client_closes_its_flow_before_the_answer_whatever_is_noted_there() {
    for mut lab in Lab::all() {
        lab.entry.clock.set(0x3000_0000 << 8);
        lab.client_sends(SYN);
        lab.client_sends(RST);
        lab.client_sends(SYN);
        assert_eq!(lab.entry.counters(0).connections, 2);
        lab.check(&[]);
    }
}
