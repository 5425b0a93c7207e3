//! Services are answered at the node's IPv6 addresses as at its IPv4 ones.

use std::{collections::BTreeSet, net::Ipv6Addr};

use super::*;
use crate::model::mapped;

const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn with_ipv6() -> (Cluster, Local) {
    let (cluster, mut local) = pair();
    local.ipv6_addresses = [ADDRESS].into();
    (cluster, local)
}

/// The addresses at which the service is answered.
fn answered(desired: &Desired) -> BTreeSet<Ipv4Addr> {
    let frontends = desired.frontends.iter();
    frontends.map(|frontend| frontend.address).collect()
}

#[test]
fn a_service_is_answered_at_every_ipv6_address_of_the_node() {
    let (cluster, mut local) = with_ipv6();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert_eq!(found.own_ipv6.keys().copied().collect::<Vec<_>>(), [ADDRESS]);
    let mapped = found.own_ipv6[&ADDRESS];
    assert!(mapped::is_own(mapped));
    let expected = [Ipv4Addr::new(192, 168, 0, 1), mapped, SERVICE_ADDRESS];
    assert_eq!(answered(&found), expected.into());
    local.datapath = NodeDatapath::Ipvs;
    let on_ipvs = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(on_ipvs.own_ipv6.is_empty() && !answered(&on_ipvs).contains(&mapped));
}

#[test]
fn what_leaves_or_reserves_a_port_does_so_for_ipv6() {
    let (cluster, local) = with_ipv6();
    let change_of: [fn(&mut Local); 3] = [
        |local| local.leaving = true,
        |local| {
            local.reserved = vec![ReservedPort {
                protocol: Protocol::Tcp,
                port: WEB.port,
                purpose: "the feed".to_owned(),
            }];
        },
        |local| {
            local.host_firewall = Arc::new(PortPolicies::all(&PortPolicy::Inexpressible("a rule".into())));
        },
    ];
    for change in change_of {
        let mut local = local.clone();
        change(&mut local);
        let found = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(answered(&found), [].into());
        assert_eq!(found.own_ipv6.len(), 1, "open connections go on");
    }
}

#[test]
fn a_service_is_closed_at_ipv6_addresses_at_which_its_label_does_not_publish_it() {
    let (mut cluster, local) = with_ipv6();
    let mut closed_by = |prefix: &str| {
        let service = cluster.services.get_mut("s1").unwrap();
        service.publish_on.addresses = vec![prefix.parse().unwrap()];
        let found = desired(&cluster, &local, SERVICE_ADDRESS);
        assert_eq!(answered(&found).len(), 3, "else Docker's mesh would answer");
        found.services[&WEB].closed.clone()
    };
    let mapped = mapped::own(&local.ipv6_addresses)[&ADDRESS];
    assert_eq!(closed_by("192.168.0.0/16"), [mapped].into());
    assert_eq!(closed_by("2001:db8::/32"), [Ipv4Addr::new(192, 168, 0, 1)].into());
    assert_eq!(closed_by("::/0"), [].into());
}

#[test]
fn rules_about_ipv6_clients_hold_at_the_same_addresses_as_all_others() {
    let (mut cluster, local) = with_ipv6();
    let denied = ["192.0.2.0/24", "2001:db8:9::/48"].map(|prefix| prefix.parse().unwrap());
    cluster.services.get_mut("s1").unwrap().clients.deny = denied.into();
    let found = desired(&cluster, &local, SERVICE_ADDRESS);
    assert!(answered(&found).contains(&found.own_ipv6[&ADDRESS]));
    let policy = found.services[&WEB].policy.as_ref().unwrap();
    let verdict = |client: &str| policy.verdicts(Ingress::Any, client.parse().unwrap()).opening;
    assert_eq!(verdict("2001:db8:9::7"), SourceVerdict::Drop);
    assert_eq!(verdict("2001:db8:8::7"), SourceVerdict::Accept);
}
