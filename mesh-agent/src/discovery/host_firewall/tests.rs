//! Rule sets as operators and their tools make them, and what they mean for published ports; and both kinds
//! of iptables, read back from the kernel.

use std::{collections::BTreeSet, net::Ipv4Addr};

use mesh_support::{command, namespace::in_new_network};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    legacy, nf_tables,
    ruleset::{Action, Chains, Condition, Rule, States, Subject},
    translate::{Network, translate},
};
use crate::{
    datapath::netlink::Connection,
    model::{Ingress, PortPolicy, Prefix, Protocol, SourcePolicy, SourceVerdict, SourceVerdicts, Subnet},
};

const FAIL2BAN: &str = "
    -A DOCKER-USER -p tcp -m multiport --dports 80,8000:8080 -j f2b-web
    -A DOCKER-USER -j RETURN
    -A f2b-web -s 203.0.113.7/32 -j REJECT
    -A f2b-web -s 198.51.100.0/24 -j DROP
    -A f2b-web -j RETURN";

const UFW_DOCKER: &str = "
    -A DOCKER-USER -j ufw-user-forward
    -A DOCKER-USER -s 10.0.0.0/8 -j RETURN
    -A DOCKER-USER -s 172.16.0.0/12 -j RETURN
    -A DOCKER-USER -s 192.168.0.0/16 -j RETURN
    -A DOCKER-USER -p udp -m udp --sports 53 --dports 1024:65535 -j RETURN
    -A DOCKER-USER -d 192.168.0.0/16 -p tcp --syn -j ufw-docker-logging-deny
    -A DOCKER-USER -d 10.0.0.0/8 -p tcp --syn -j ufw-docker-logging-deny
    -A DOCKER-USER -d 172.16.0.0/12 -p tcp --syn -j ufw-docker-logging-deny
    -A DOCKER-USER -d 192.168.0.0/16 -p udp --dports 0:32767 -j ufw-docker-logging-deny
    -A DOCKER-USER -d 10.0.0.0/8 -p udp --dports 0:32767 -j ufw-docker-logging-deny
    -A DOCKER-USER -d 172.16.0.0/12 -p udp --dports 0:32767 -j ufw-docker-logging-deny
    -A DOCKER-USER -j RETURN
    -A ufw-user-forward -p tcp --dports 8443 -j ACCEPT
    -A ufw-docker-logging-deny -m limit -j LOG
    -A ufw-docker-logging-deny -j DROP";

/// Rules as `iptables -S` prints them; ports always in the plural.
fn parse(text: &str) -> Chains {
    let mut chains = Chains::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut arguments = line.split_whitespace();
        let (mut chain, mut conditions, mut inverted) = ("", Vec::new(), false);
        let mut action = Action::Continue(String::new());
        while let Some(option) = arguments.next() {
            if option == "!" {
                inverted = true;
                continue;
            }
            let mut value = || arguments.next().expect("a value");
            let ports = |list: &str| {
                let port = |text: &str| text.parse::<u16>().expect("a port");
                let range = |text: &str| match text.split_once(':') {
                    Some((first, last)) => port(first)..=port(last),
                    None => port(text)..=port(text),
                };
                list.split(',').map(range).collect::<Vec<_>>()
            };
            let subject = match option {
                "-A" => {
                    chain = value();
                    continue;
                }
                "-j" | "-g" => {
                    action = match value() {
                        "ACCEPT" => Action::Accept,
                        "DROP" => Action::Drop,
                        "REJECT" => Action::Reject,
                        "RETURN" => Action::Return,
                        "LOG" => Action::Continue("LOG".to_owned()),
                        name if option == "-g" => Action::Goto(name.to_owned()),
                        name => Action::Jump(name.to_owned()),
                    };
                    continue;
                }
                "-m" => match value() {
                    "multiport" | "tcp" | "udp" | "conntrack" | "comment" => continue,
                    other => Subject::Other(other.to_owned()),
                },
                "-s" => Subject::Source(value().parse().unwrap()),
                "-d" => Subject::Destination(value().parse().unwrap()),
                "-i" => Subject::In(value().to_owned()),
                "-o" => Subject::Out(value().to_owned()),
                "-p" => Subject::Protocol(if value() == "tcp" { 6 } else { 17 }),
                "--sports" => Subject::SourcePorts(ports(value())),
                "--dports" => Subject::DestinationPorts(ports(value())),
                "--ctorigdstport" => Subject::OriginalDestinationPorts(ports(value())),
                "--syn" => Subject::Syn,
                "--ctstate" => {
                    let states: BTreeSet<_> = value().split(',').collect();
                    Subject::State(States {
                        new: states.contains("NEW"),
                        established: states.contains("ESTABLISHED"),
                        translated: states.contains("DNAT"),
                        others: states.contains("RELATED") || states.contains("INVALID"),
                    })
                }
                other => panic!("{other} in {line}"),
            };
            conditions.push(Condition::new(subject, std::mem::take(&mut inverted)));
        }
        let rules = chains.entry(chain.to_owned()).or_default();
        rules.push(Rule { conditions, action });
    }
    chains
}

fn network() -> Network {
    let subnet = |text: &str| BTreeSet::from([text.parse::<Subnet>().unwrap()]);
    Network {
        uplinks: [(2, "eth0".to_owned()), (3, "wg0".to_owned())].into(),
        bridges: [
            ("docker0".to_owned(), subnet("172.17.0.0/16")),
            ("docker_gwbridge".to_owned(), subnet("172.18.0.0/16")),
        ]
        .into(),
    }
}

fn policy(rules: &str, protocol: Protocol, port: u16) -> PortPolicy {
    translate(&[parse(rules)], &network()).of(protocol, port)
}

fn compiled(rules: &str, protocol: Protocol, port: u16) -> SourcePolicy {
    match policy(rules, protocol, port) {
        PortPolicy::Rules(policy) => SourcePolicy::clone(&policy),
        other => panic!("{protocol} {port}: {other:?}"),
    }
}

#[track_caller]
fn check_text(rules: &str, protocol: Protocol, port: u16, expected: &str) {
    assert_eq!(compiled(rules, protocol, port).to_string(), expected);
}

#[track_caller]
fn check_inexpressible(rules: &str, protocol: Protocol, port: u16, rule: &str) {
    assert_eq!(
        policy(rules, protocol, port),
        PortPolicy::Inexpressible(rule.into())
    );
}

use Protocol::{Tcp, Udp};

#[test]
fn without_rules_everyone_comes_in() {
    for rules in [
        "",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DROP",
        "-A DOCKER-USER -m limit -j LOG",
    ] {
        assert_eq!(policy(rules, Tcp, 80), PortPolicy::Everyone, "{rules}");
    }
}

#[test]
fn a_client_is_dropped_and_others_are_not() {
    let rules = "-A DOCKER-USER -s 192.0.2.7/32 -j DROP
                 -A DOCKER-USER -j RETURN";
    for (protocol, port) in [(Tcp, 80), (Udp, 53), (Tcp, 65_535)] {
        check_text(rules, protocol, port, "accept ::/0, drop 192.0.2.7/32");
    }
}

#[test]
fn the_first_rule_that_decides_wins() {
    let rules = "-A DOCKER-USER -s 192.0.2.128/25 -j ACCEPT
                 -A DOCKER-USER -s 192.0.2.0/24 -j REJECT
                 -A DOCKER-USER -s 192.0.2.200/32 -j DROP";
    check_text(
        rules,
        Tcp,
        80,
        "accept ::/0, reject 192.0.2.0/24, accept 192.0.2.128/25",
    );
}

#[test]
fn fail2bans_bans_hold_for_its_ports_only() {
    for port in [80, 8000, 8080] {
        check_text(
            FAIL2BAN,
            Tcp,
            port,
            "accept ::/0, drop 198.51.100.0/24, reject 203.0.113.7/32",
        );
    }
    for (protocol, port) in [(Tcp, 79), (Tcp, 81), (Tcp, 8081), (Udp, 80)] {
        assert_eq!(policy(FAIL2BAN, protocol, port), PortPolicy::Everyone);
    }
}

#[test]
fn ufw_docker_closes_what_ufw_does_not_open() {
    let local = "accept 10.0.0.0/8, accept 172.16.0.0/12, accept 192.168.0.0/16";
    // Open connections go on: the rules are about SYNs.
    check_text(
        UFW_DOCKER,
        Tcp,
        8080,
        &format!("drop ::/0 (open connections: accept), {local}"),
    );
    assert_eq!(policy(UFW_DOCKER, Tcp, 8443), PortPolicy::Everyone);
    check_text(UFW_DOCKER, Udp, 53, &format!("drop ::/0, {local}"));
    assert_eq!(policy(UFW_DOCKER, Udp, 40_000), PortPolicy::Everyone);
    // Name servers' answers come in, and no client because it sends from their port.
    check_text(UFW_DOCKER, Udp, 5353, &format!("drop ::/0, {local}"));
}

#[test]
fn a_rule_about_clients_from_a_services_port_is_not_expressed_where_it_keeps_them_out() {
    let rule = "-A DOCKER-USER -p udp --sports 19,53,123 -j DROP";
    check_inexpressible(rule, Udp, 5353, rule);
    assert_eq!(policy(rule, Tcp, 5353), PortPolicy::Everyone);
    // Where it may come back to a chain that drops what it does not name, neither.
    let rules = "-A DOCKER-USER -j answers
                 -A answers -p udp --sports 53 -j RETURN
                 -A answers -j ACCEPT
                 -A DOCKER-USER -j DROP";
    check_inexpressible(rules, Udp, 5353, "-A answers -p udp --sports 53 -j RETURN");
    let rules = "-A DOCKER-USER -j answers
                 -A answers -p udp --sports 53 -j ACCEPT
                 -A DOCKER-USER -j DROP";
    check_text(rules, Udp, 5353, "drop ::/0");
    // Those are ports that clients have.
    let rules = "-A DOCKER-USER -p udp --sports 1000:2000 -j ACCEPT
                 -A DOCKER-USER -j DROP";
    check_inexpressible(
        rules,
        Udp,
        5353,
        "-A DOCKER-USER -p udp --sports 1000:2000 -j ACCEPT",
    );
}

#[test]
fn open_connections_are_kept_by_a_rule_that_says_so() {
    let rules = "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                 -A DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 -j ACCEPT
                 -A DOCKER-USER -j DROP";
    check_text(rules, Tcp, 80, "drop ::/0 (open connections: accept)");
    assert_eq!(policy(rules, Tcp, 8080), PortPolicy::Everyone);
    check_text(rules, Udp, 8080, "drop ::/0 (open connections: accept)");
}

#[test]
fn a_rule_against_the_answers_closes_the_port_as_well() {
    let rules = "-A DOCKER-USER -d 192.0.2.7/32 -j DROP";
    check_text(rules, Tcp, 80, "accept ::/0, drop 192.0.2.7/32");
    check_text(
        "-A DOCKER-USER -o eth0 -s 172.18.0.0/16 -p tcp --sports 80 -j DROP",
        Tcp,
        80,
        "interface 2 drop ::/0, interface 3 accept ::/0, containers accept ::/0",
    );
    assert_eq!(
        policy(
            "-A DOCKER-USER -d 192.168.0.0/16 -p tcp -i docker0 -o docker0 -j DROP",
            Tcp,
            80
        ),
        PortPolicy::Everyone
    );
}

#[test]
fn a_rule_that_loses_every_answer_closes_the_port_for_everyone() {
    // Answers are not from that network either. (With `-i eth0` it would be right.)
    check_text("-A DOCKER-USER ! -s 10.0.0.0/8 -j DROP", Tcp, 80, "drop ::/0");
    check_text(
        "-A DOCKER-USER -p tcp --dports 1024:65535 -j DROP",
        Tcp,
        80,
        "drop ::/0",
    );
    assert_eq!(
        policy("-A DOCKER-USER -p tcp --dports 8080 -j DROP", Tcp, 80),
        PortPolicy::Everyone
    );
}

#[test]
fn rules_of_an_interface_hold_there() {
    let rules = "-A DOCKER-USER -i eth+ ! -s 192.0.2.0/24 -j DROP";
    check_text(
        rules,
        Tcp,
        80,
        "interface 2 drop ::/0, interface 2 accept 192.0.2.0/24, interface 3 accept ::/0, containers accept ::/0",
    );
    // A container's address tells its bridge; what has another one may be of any.
    let policy = compiled("-A DOCKER-USER -i docker0 -j REJECT", Tcp, 80);
    let verdict = |client: [u8; 4]| {
        let client = Prefix::from(Ipv4Addr::from(client));
        policy.verdicts(Ingress::Containers, client)
    };
    assert_eq!(
        verdict([172, 17, 0, 2]),
        SourceVerdicts::both(SourceVerdict::Reject)
    );
    assert_eq!(verdict([172, 18, 0, 2]), SourceVerdicts::default());
    assert_eq!(
        verdict([192, 0, 2, 7]),
        SourceVerdicts::both(SourceVerdict::Reject)
    );
}

#[test]
fn a_rule_that_cannot_be_expressed_is_named_unless_it_changes_nothing() {
    let rule = "-A DOCKER-USER -p tcp --dports 80 -m string -j DROP";
    check_inexpressible(rule, Tcp, 80, rule);
    assert_eq!(policy(rule, Tcp, 81), PortPolicy::Everyone);
    check_text(
        "-A DOCKER-USER -m recent -j DROP
         -A DOCKER-USER -j DROP",
        Tcp,
        80,
        "drop ::/0",
    );
    assert_eq!(
        policy("-A DOCKER-USER -m set -j ACCEPT", Tcp, 80),
        PortPolicy::Everyone
    );
    check_inexpressible(
        "-A DOCKER-USER -m set -j bans
         -A bans -j DROP",
        Tcp,
        80,
        "-A DOCKER-USER -m set -j bans",
    );
    // The sandbox's very address is not known.
    let rule = "-A DOCKER-USER -d 172.18.0.2/32 -j DROP";
    check_inexpressible(rule, Tcp, 80, rule);
}

#[test]
fn chains_may_return_and_be_left_for_good() {
    let rules = "-A DOCKER-USER -j one
                 -A DOCKER-USER -s 192.0.2.0/24 -j DROP
                 -A one -s 192.0.2.7/32 -g two
                 -A one -s 192.0.2.8/32 -j ACCEPT
                 -A two -s 192.0.2.7/32 -j RETURN
                 -A two -j REJECT";
    check_text(
        rules,
        Tcp,
        80,
        "accept ::/0, drop 192.0.2.0/24, accept 192.0.2.8/32",
    );
    let loops = "-A DOCKER-USER -j one
                 -A one -j two
                 -A two -j one";
    assert!(matches!(policy(loops, Tcp, 80), PortPolicy::Inexpressible(_)));
}

#[test]
fn both_kinds_of_tables_hold() {
    let one = parse("-A DOCKER-USER -s 192.0.2.7/32 -j DROP");
    let other = parse("-A DOCKER-USER -s 192.0.2.0/24 -j REJECT");
    let policies = translate(&[one, other], &network());
    let PortPolicy::Rules(policy) = policies.of(Tcp, 80) else {
        panic!("{policies:?}");
    };
    assert_eq!(
        policy.to_string(),
        "accept ::/0, reject 192.0.2.0/24, drop 192.0.2.7/32"
    );
}

#[test]
fn thousands_of_bans_are_translated_at_once() {
    let mut rules = FAIL2BAN.to_owned();
    for number in 0..5_000_u32 {
        let address = Ipv4Addr::from_bits(0x2000_0000 + 2 * number);
        rules.push_str(&format!("\n-A f2b-web -s {address}/32 -j DROP"));
    }
    // The chain ends before them.
    let rules = rules.replace("-A f2b-web -j RETURN", "");
    let before = std::time::Instant::now();
    assert_eq!(compiled(&rules, Tcp, 80).len(), 5_003);
    assert!(before.elapsed().as_secs() < 10, "{:?}", before.elapsed());
}

/// What a program of iptables is given, and how the rules are read back.
const WRITTEN: [(&str, &str); 12] = [
    ("-s 192.0.2.7 -j DROP", "-s 192.0.2.7/32 -j DROP"),
    (
        "! -s 10.0.0.0/8 -i eth0 -j DROP",
        "! -s 10.0.0.0/8 -i eth0 -j DROP",
    ),
    (
        "-s 192.0.2.0/27 ! -i eth+ -j ACCEPT",
        "-s 192.0.2.0/27 ! -i eth+ -j ACCEPT",
    ),
    (
        "-d 172.18.0.0/16 -o docker_gwbridge -j RETURN",
        "-d 172.18.0.0/16 -o docker_gwbridge -j RETURN",
    ),
    ("-p tcp --dport 8080 -j REJECT", "-p tcp --dports 8080 -j REJECT"),
    (
        "-p udp --dport 1000:2000 -j bans",
        "-p udp --dports 1000:2000 -j bans",
    ),
    (
        "-p tcp -m multiport --dports 80,443,8000:8080 -g bans",
        "-p tcp --dports 80,443,8000:8080 -g bans",
    ),
    (
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate ESTABLISHED,others -j ACCEPT",
    ),
    (
        "-p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP",
        "-p tcp -m conntrack --ctorigdstport 8080 -m conntrack --ctdir ORIGINAL -j DROP",
    ),
    (
        "-p tcp --syn -m comment --comment hello -j DROP",
        "-p tcp --syn -j DROP",
    ),
    (
        "-m iprange --src-range 192.0.2.3-192.0.2.9 -j DROP",
        "-m iprange --src-range 192.0.2.3-192.0.2.9 -j DROP",
    ),
    ("-m mark --mark 7 -j DROP", "-m mark -j DROP"),
];

/// Writes rules by a program of iptables, in a network namespace of their own, and reads them back.
fn check_read(program: &str, read: impl FnOnce() -> Chains + Send) {
    in_new_network(|| {
        let run = |arguments: &str| {
            let arguments: Vec<_> = arguments.split_whitespace().collect();
            command::output(program, &arguments, "").unwrap();
        };
        run("-w -N DOCKER-USER");
        run("-w -N bans");
        run("-w -A bans -s 203.0.113.7 -j DROP");
        run("-w -A FORWARD -j DOCKER-USER");
        for (written, _) in WRITTEN {
            run(&format!("-w -A DOCKER-USER {written}"));
        }
        let chains = read();
        // iptables-nft has the interfaces first.
        let sorted = |mut rule: Rule| {
            rule.conditions
                .sort_by_key(|condition| matches!(condition.subject, Subject::In(_) | Subject::Out(_)));
            rule.to_string()
        };
        let lines = |chain: &str| chains[chain].iter().cloned().map(sorted).collect::<Vec<_>>();
        assert_eq!(lines("DOCKER-USER"), WRITTEN.map(|(_, read)| read.to_owned()));
        assert_eq!(lines("bans"), ["-s 203.0.113.7/32 -j DROP"]);
    })
    .expect("this test makes a network namespace: run it as root");
}

#[test]
fn rules_of_iptables_nft_are_read_from_the_kernel() {
    check_read("iptables-nft", || {
        nf_tables::read(&mut Connection::open(NETLINK_NETFILTER).unwrap()).unwrap()
    });
}

#[test]
fn rules_of_iptables_legacy_are_read_from_the_kernel() {
    check_read("iptables-legacy", || legacy::read().unwrap());
}

#[test]
fn a_host_without_rules_has_no_chains_and_gets_no_table() {
    in_new_network(|| {
        let mut netfilter = Connection::open(NETLINK_NETFILTER).unwrap();
        assert_eq!(nf_tables::read(&mut netfilter).unwrap(), Chains::new());
        assert_eq!(legacy::read().unwrap(), Chains::new());
        let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
        assert_eq!(tables.unwrap_or_default(), "");
    })
    .expect("this test makes a network namespace: run it as root");
}
