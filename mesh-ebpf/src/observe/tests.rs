//! What is reported, when, and by which node.

use super::*;
use crate::{
    abi::Event,
    headers::PROTOCOL_TCP,
    testing::{
        ACK, CLIENT_ROUTE, FIN, RST, Replica, SYN, Segment, TestFrame, TestTables, at, reply_to, run,
        segment, tcp, view,
    },
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const CONTAINER: &str = "172.18.0.1:80";
const LOCAL: Replica = Replica::on(1, 1);
const REMOTE: Replica = Replica::on(2, 1);

fn from_client(tables: &TestTables, segment: Segment<'_>) -> TestFrame {
    let mut frame = tcp(at(CLIENT), at(FRONTEND), segment);
    run(tables, Hook::TcUplink, &mut frame);
    frame
}

fn from_container(tables: &TestTables, segment: Segment<'_>) {
    let mut frame = tcp(at(CONTAINER), at(CLIENT), segment).routed(CLIENT_ROUTE);
    run(tables, Hook::TcContainer, &mut frame);
}

fn kinds(tables: &TestTables) -> Vec<Observed> {
    tables.reports.borrow().iter().map(|report| report.kind).collect()
}

/// A connection that is open: the next numbers are 1001 and 5001.
fn open(replica: Replica) -> TestTables {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[replica]);
    from_client(&tables, segment(SYN, 1000, 0));
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    from_client(&tables, segment(ACK, 1001, 5001));
    tables
}

#[test]
fn a_connection_is_reported_as_it_opens_and_as_the_second_side_closes_it() {
    let tables = open(LOCAL);
    assert_eq!(kinds(&tables), [Observed::Opened]);
    from_client(&tables, segment(FIN | ACK, 1001, 5001));
    assert_eq!(kinds(&tables), [Observed::Opened], "the other half is open");
    from_container(&tables, segment(FIN | ACK, 5001, 1002));
    from_container(&tables, segment(FIN | ACK, 5001, 1002));
    assert_eq!(kinds(&tables), [Observed::Opened, Observed::Closed]);
    let reports = tables.reports.borrow();
    assert_eq!(reports[0].backend, 0, "the first of the backends");
    assert_eq!(
        (reports[1].backend, reports[1].generation),
        (reports[0].backend, reports[0].generation)
    );
}

#[test]
fn a_reset_names_the_side_that_sent_it() {
    let tables = open(LOCAL);
    from_client(&tables, segment(RST, 1001, 0));
    assert_eq!(kinds(&tables), [Observed::Opened, Observed::ResetByClient]);

    let tables = open(LOCAL);
    from_container(&tables, segment(RST | ACK, 5001, 1001));
    assert_eq!(kinds(&tables), [Observed::Opened, Observed::ResetByBackend]);
}

#[test]
fn a_connection_is_reported_by_its_entry_node_only() {
    let entry = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[REMOTE]);
    let backend = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[REMOTE]);
    let mut sent = from_client(&entry, segment(SYN, 1000, 0)).received();
    run(&backend, Hook::TcUplink, &mut sent);
    let mut reply = reply_to(&view(&sent), RST | ACK, b"").routed(CLIENT_ROUTE);
    run(&backend, Hook::TcContainer, &mut reply);
    assert_eq!(kinds(&backend), []);
    let mut received = reply.received().routed(CLIENT_ROUTE);
    run(&entry, Hook::TcUplink, &mut received);
    assert_eq!(kinds(&entry), [Observed::Opened, Observed::ResetByBackend]);
}

#[test]
fn what_is_refused_or_dropped_is_reported_with_its_reason_as_often_as_it_is_counted() {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[]);
    from_client(&tables, segment(SYN, 1000, 0));
    let reports = tables.reports.borrow();
    assert_eq!(
        (reports[0].kind, reports[0].reason, reports[0].backend),
        (Observed::Refused, DropReason::NoBackend as u32, NO_BACKEND)
    );
    assert_eq!((reports.len(), tables.all_drops()), (1, 1));
    drop(reports);

    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[LOCAL]);
    tables.full.set(true);
    from_client(&tables, segment(SYN, 1000, 0));
    assert_eq!(kinds(&tables), [Observed::Dropped]);
    assert_eq!(
        (
            tables.drops(Hook::TcUplink, DropReason::FlowTableFull),
            tables.all_drops()
        ),
        (1, 1)
    );
    assert_eq!(tables.events(Event::FlowInserted), 0);
}
