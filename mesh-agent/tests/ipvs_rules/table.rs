//! The tables as `nft` lists them: new, changed, adopted, damaged by other programs, removed.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mesh_agent::{
    datapath::ipvs::rules::{Rules, Table, Target},
    model::{BackendKey, Protocol, ServiceKey, Subnet},
};
use mesh_support::error_chain;

use crate::namespace::{Namespace, nft, nft_load, traces};

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9200,
};
pub(crate) const DNS: ServiceKey = ServiceKey {
    protocol: Protocol::Udp,
    port: 5300,
};

/// A replica of a service, by the last byte of its ingress address.
pub(crate) fn target(service: ServiceKey, number: u8, address: [u8; 4], port: u16, weight: u32) -> Target {
    Target {
        backend: BackendKey {
            service,
            address: Ipv4Addr::new(10, 0, 0, number),
        },
        address: address.into(),
        port,
        weight,
    }
}

/// The rules of a node with two replicas of one service, one of them elsewhere, and a service without any.
pub(crate) fn rules() -> Rules {
    Rules {
        node_address: Some(NODE),
        bridge: "docker_gwbridge".to_owned(),
        tunnel_port: 6081,
        uplinks: ["up0".to_owned()].into(),
        uplink_mtu: 1500,
        frontends: [
            (NODE, Protocol::Tcp, 9200),
            (Ipv4Addr::new(172, 18, 0, 1), Protocol::Udp, 5300),
        ]
        .into(),
        localhost: BTreeMap::from([
            (
                WEB,
                vec![
                    target(WEB, 5, [172, 18, 0, 5], 80, 2),
                    target(WEB, 6, [250, 0, 0, 6], 9200, 1),
                    target(WEB, 7, [250, 0, 0, 7], 9200, 0),
                ],
            ),
            (DNS, Vec::new()),
        ]),
        local_replicas: [Ipv4Addr::new(172, 18, 0, 5)].into(),
        masquerades: [(Subnet::of(Ipv4Addr::new(10, 0, 0, 0), 24), NODE)].into(),
        peers: [PEER].into(),
    }
}

#[track_caller]
pub(crate) fn open() -> Table {
    Table::open().unwrap_or_else(|error| panic!("{}", error_chain(&error)))
}

#[track_caller]
pub(crate) fn apply(table: &mut Table, rules: &Rules) {
    table
        .apply(rules)
        .unwrap_or_else(|error| panic!("{}", error_chain(&error)));
}

#[test]
fn the_tables_are_as_documented() {
    let listing = Namespace::new().run(|| {
        apply(&mut open(), &rules());
        nft("list ruleset")
    });
    let expected = include_str!("ruleset.nft");
    assert!(listing == expected, "the listing is now:\n{listing}");
    // `nft` accepts what it lists.
    Namespace::new().run(|| nft_load(&listing));
}

#[test]
fn only_the_difference_is_sent() {
    Namespace::new().run(|| {
        let mut table = open();
        apply(&mut table, &rules());
        let before = nft("-a list ruleset");
        apply(&mut table, &rules());
        assert_eq!(nft("-a list ruleset"), before, "nothing is replaced");

        let mut more = rules();
        more.frontends.insert((NODE, Protocol::Udp, 5300));
        more.peers.insert(Ipv4Addr::new(192, 0, 2, 3));
        more.localhost.insert(
            ServiceKey {
                protocol: Protocol::Tcp,
                port: 9300,
            },
            vec![target(WEB, 9, [172, 18, 0, 9], 80, 1)],
        );
        apply(&mut table, &more);
        let after = nft("-a list ruleset");
        let kept = |listing: &str| -> Vec<String> {
            let rules = listing.lines().filter(|line| line.contains("# handle"));
            rules.map(str::to_owned).collect()
        };
        for line in kept(&before) {
            assert!(after.contains(&line), "{line} is gone:\n{after}");
        }
        apply(&mut table, &rules());
        assert_eq!(nft("-a list ruleset"), before, "back to where it was");
    });
}

#[test]
fn a_changed_rotation_replaces_one_rule() {
    Namespace::new().run(|| {
        let mut table = open();
        apply(&mut table, &rules());
        let mut drained = rules();
        let targets = drained.localhost.get_mut(&WEB).unwrap();
        targets[0].weight = 0;
        targets[1].address = Ipv4Addr::new(250, 0, 0, 66);
        apply(&mut table, &drained);
        let listing = nft("list ruleset");
        assert!(
            listing.contains("numgen inc mod 1 vmap { 0 : goto tcp-9200-10.0.0.6 }"),
            "{listing}"
        );
        assert!(listing.contains("dnat to 250.0.0.66:9200"), "{listing}");
        assert!(!listing.contains("chain tcp-9200-10.0.0.5"), "{listing}");
        assert!(listing.contains("counter tcp-9200-10.0.0.5"), "{listing}");
        targets_gone(&mut table, drained);
    });
}

fn targets_gone(table: &mut Table, mut rules: Rules) {
    rules.localhost.clear();
    apply(table, &rules);
    let listing = nft("list ruleset");
    assert!(!listing.contains("tcp-9200"), "{listing}");
    assert_eq!(table.counters().unwrap(), BTreeMap::new());
}

#[test]
fn many_frontends_and_replicas_fit_into_one_transaction() {
    Namespace::new().run(|| {
        let mut table = open();
        let mut many = rules();
        for number in 0..4000_u16 {
            many.frontends.insert((NODE, Protocol::Tcp, 10_000 + number));
            let service = ServiceKey {
                protocol: Protocol::Tcp,
                port: 10_000 + number,
            };
            let targets = (1..=3).map(|replica| target(service, replica, [172, 18, 0, replica], 80, 1));
            many.localhost.insert(service, targets.collect());
        }
        let targets = (0..600_u16).map(|replica| {
            let [high, low] = replica.to_be_bytes();
            let mut target = target(DNS, 1, [172, 18, high, low], 53, 1);
            target.backend.address = Ipv4Addr::new(10, 0, high, low);
            target
        });
        many.localhost.insert(DNS, targets.collect());
        apply(&mut table, &many);
        assert_eq!(table.read().unwrap().unwrap().frontends, many.frontends);
        assert_eq!(table.counters().unwrap().len(), 3 + 3 * 4000 + 600);
        apply(&mut table, &rules());
        assert_eq!(table.read().unwrap().unwrap().frontends, rules().frontends);
    });
}

#[test]
fn an_earlier_agents_table_is_read_and_replaced() {
    Namespace::new().run(|| {
        assert_eq!(open().read().unwrap(), None);
        apply(&mut open(), &rules());
        nft_load("flush chain ip mesh input\nadd chain ip mesh stale\n");
        let mut table = open();
        let found = table.read().unwrap().expect("the table is there");
        assert_eq!(found.frontends, rules().frontends);
        let mut fewer = rules();
        fewer.frontends.pop_first();
        apply(&mut table, &fewer);
        assert_eq!(table.read().unwrap().unwrap().frontends, fewer.frontends);
        let listing = nft("list ruleset");
        assert!(
            !listing.contains("stale") && listing.contains("udp dport 6081"),
            "{listing}"
        );
    });
}

#[test]
fn what_other_programs_remove_is_restored() {
    Namespace::new().run(|| {
        let mut table = open();
        apply(&mut table, &rules());
        let before = nft("list ruleset");
        nft("flush ruleset");
        apply(&mut table, &rules());
        assert_eq!(nft("list ruleset"), before);
        nft("delete element ip mesh peers { 192.0.2.2 }");
        let mut other = rules();
        other.peers = [Ipv4Addr::new(192, 0, 2, 3)].into();
        apply(&mut table, &other);
        let listing = nft("list ruleset");
        assert_eq!(listing, before.replace("192.0.2.2 }", "192.0.2.3 }"));
    });
}

#[test]
fn removal_leaves_tables_of_other_programs() {
    Namespace::new().run(|| {
        nft_load("add table ip other\nadd chain ip other hooked { type filter hook forward priority 0; }\n");
        let before = traces();
        let mut table = open();
        table.remove().unwrap();
        apply(&mut table, &rules());
        assert_ne!(traces(), before);
        table.remove().unwrap();
        table.remove().unwrap();
        assert_eq!(traces(), before);
    });
}
