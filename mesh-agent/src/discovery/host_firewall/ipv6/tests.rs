//! Rules of each kind, as a real kernel has them.

use std::time::Duration;

use mesh_support::{command, namespace::in_new_network};
use tokio::time::timeout;

use super::*;

fn nft(ruleset: &str) {
    command::output("nft", &["-f", "-"], ruleset).unwrap();
}

/// What is found after rules have been made in a network namespace of their own; empty if nothing.
fn found(make: impl FnOnce() + Send) -> String {
    in_new_network(|| {
        make();
        match ipv6_rules().unwrap() {
            Ipv6Rules::Open => String::new(),
            Ipv6Rules::Restricted(chain) => chain.to_string(),
        }
    })
    .expect("this test makes a network namespace: run it as root")
}

fn with_nft(ruleset: &str) -> String {
    found(|| nft(ruleset))
}

#[test]
fn a_host_without_rules_for_ipv6_is_open() {
    assert_eq!(found(|| {}), "");
    let others = "
        add table ip filter
        add chain ip filter INPUT { type filter hook input priority 0; policy drop; }
        add table ip6 fw
        add chain ip6 fw out { type filter hook output priority 0; policy drop; }
        add chain ip6 fw unused
        add rule ip6 fw unused drop
        add chain ip6 fw in { type filter hook input priority 0; policy accept; }
        add rule ip6 fw in tcp dport 22 counter accept
        add chain ip6 fw before { type nat hook prerouting priority -100; }
        add rule ip6 fw before tcp dport 80 redirect to :8080";
    assert_eq!(with_nft(others), "");
}

#[test]
fn rules_of_nftables_that_may_refuse_are_found() {
    for (rules, chain) in [
        (
            "add chain inet fw in { type filter hook input priority 0; policy drop; }",
            "the chain in (inet fw) has a policy other than accept",
        ),
        (
            "add chain inet fw early { type filter hook prerouting priority -300; }
             add rule inet fw early tcp dport 9200 drop",
            "the chain early (inet fw) has rules that may refuse packets",
        ),
        (
            "add chain inet fw own
             add rule inet fw own tcp dport 9200 reject
             add chain inet fw through { type filter hook forward priority 0; }
             add rule inet fw through iifname eth0 goto own",
            "the chain own (inet fw), to which through leads, has rules that may refuse packets",
        ),
        (
            "add chain inet fw in { type filter hook input priority 0; }
             add rule inet fw in tcp dport vmap { 22 : accept, 23 : drop }",
            "the chain in (inet fw) has rules that may refuse packets",
        ),
    ] {
        assert_eq!(with_nft(&format!("add table inet fw\n{rules}")), chain, "{rules}");
    }
}

fn ip6tables(program: &str, call: &str) {
    let arguments: Vec<_> = ["-w"].into_iter().chain(call.split_whitespace()).collect();
    command::output(program, &arguments, "").unwrap();
}

/// What is found after calls of a program of ip6tables.
fn with_ip6tables(program: &str, calls: &[&str]) -> String {
    found(|| {
        for call in calls {
            ip6tables(program, call);
        }
    })
}

#[test]
fn rules_of_both_kinds_of_ip6tables_are_found() {
    for (program, table) in [
        ("ip6tables-nft", "ip6 filter"),
        ("ip6tables-legacy", "ip6tables-legacy filter"),
    ] {
        let found = |calls: &[&str]| with_ip6tables(program, calls);
        let open = [
            "-N own",
            "-A INPUT -p tcp --dport 22 -j ACCEPT",
            "-A INPUT -j own",
            "-A own -j RETURN",
            "-A OUTPUT -j DROP",
            "-P OUTPUT DROP",
        ];
        assert_eq!(found(&open), "", "{program}");
        let policy = format!("the chain INPUT ({table}) has a policy other than accept");
        assert_eq!(found(&["-P INPUT DROP"]), policy, "{program}");
        let policy = format!("the chain FORWARD ({table}) has a policy other than accept");
        assert_eq!(found(&["-P FORWARD DROP"]), policy, "{program}");
        let refusing = [&open[..], &["-A own -s 2001:db8::/32 -j REJECT"]].concat();
        let rule =
            format!("the chain own ({table}), to which INPUT leads, has rules that may refuse packets");
        assert_eq!(found(&refusing), rule, "{program}");
        let dockers = [
            "-N DOCKER",
            "-N DOCKER-USER",
            "-A DOCKER -j DROP",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -j DOCKER",
            "-P FORWARD DROP",
        ];
        assert_eq!(found(&dockers), "", "{program}");
        let operators = [&dockers[..], &["-A DOCKER-USER -p tcp --dport 9200 -j DROP"]].concat();
        assert!(
            found(&operators).starts_with("the chain DOCKER-USER"),
            "{program}"
        );
    }
}

#[test]
fn changes_are_followed() {
    in_new_network(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (watcher, mut rules) = watch_ipv6_rules();
            // Sooner than it would look by itself.
            let announced = POLL_INTERVAL - Duration::from_secs(1);
            let shutdown = CancellationToken::new();
            let watching = tokio::spawn(watcher.run(shutdown.clone()));
            let mut becomes = async |expected: &Ipv6Rules, limit: Duration| {
                let wait = rules.wait_for(|rules| rules.as_ref() == Some(expected));
                let arrived = timeout(limit, wait).await;
                assert!(arrived.is_ok(), "{expected:?}");
            };
            becomes(&Ipv6Rules::Open, announced).await;
            nft("add table ip6 fw
                 add chain ip6 fw in { type filter hook input priority 0; policy drop; }");
            let chain = "the chain in (ip6 fw) has a policy other than accept";
            becomes(&Ipv6Rules::Restricted(chain.into()), announced).await;
            nft("delete table ip6 fw");
            becomes(&Ipv6Rules::Open, announced).await;
            ip6tables("ip6tables-legacy", "-P INPUT DROP");
            let chain = "the chain INPUT (ip6tables-legacy filter) has a policy other than accept";
            becomes(&Ipv6Rules::Restricted(chain.into()), POLL_INTERVAL * 3).await;
            shutdown.cancel();
            watching.await.unwrap();
        });
    })
    .expect("this test makes a network namespace: run it as root");
}
