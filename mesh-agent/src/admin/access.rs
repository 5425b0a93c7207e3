//! Which services do not let everyone in everywhere on this node, and why: from the agent's view. Pure.

use std::collections::BTreeMap;

use super::View;
use crate::{
    first_few::first_few,
    model::{PolicyRule, Prefix, Service, ServiceEntry, ServiceKey},
};

/// A line names so many addresses or prefixes.
const SHOWN: usize = 8;

/// One line for each label that keeps clients out of a service here, and for the node's own policy where it
/// does.
#[must_use]
pub(crate) fn access_lines(view: &View) -> Vec<String> {
    let services = view.desired.services.iter();
    let held = services.filter(|(key, _)| !view.desired.inexpressible.contains_key(key));
    held.flat_map(|(key, entry)| lines(view, *key, entry)).collect()
}

/// Why clients of the network reach a service at none of this node's addresses, if that is so by its label.
pub(super) fn unpublished(view: &View, key: ServiceKey, entry: &ServiceEntry) -> Option<String> {
    let frontends = view.desired.frontends.iter();
    let open =
        frontends.filter(|frontend| frontend.service == key && !entry.closed.contains(&frontend.address));
    // The service address, by which the node's own processes come in.
    let is_everywhere = !entry.closed.is_empty() && open.count() == 1;
    is_everywhere.then(|| "not published on this node (mesh.publish-on): clients are refused".to_owned())
}

fn lines(view: &View, key: ServiceKey, entry: &ServiceEntry) -> Vec<String> {
    let Some(service) = view.source.cluster.services.get(&entry.id) else {
        return Vec::new();
    };
    let name = format!("{} ({key})", service.name);
    let label = format!("mesh.publish-on={}", service.publish_on);
    let closed = match unpublished(view, key, entry) {
        Some(_) => Some(format!(
            "{name} is not published on this node, whose own processes alone reach it ({label})"
        )),
        None if entry.closed.is_empty() => None,
        None => {
            let closed = entry.closed.iter();
            let closed = closed.map(|address| view.desired.actual(*address).to_string());
            let addresses = shown(closed, ",");
            Some(format!("{name} refuses clients at {addresses} ({label})"))
        }
    };
    let interfaces = &service.publish_on.interfaces;
    let by_interface = (!interfaces.is_empty()).then(|| {
        let only = shown(interfaces.iter().cloned(), ",");
        format!("{name} refuses clients of the network that do not come in by {only} ({label})")
    });
    let by_node = of_node(view, key, &name);
    closed
        .into_iter()
        .chain(by_interface)
        .chain(by_node)
        .chain(clients(&name, service))
        .collect()
}

/// The rules of the node's own policy that are about a port, if they keep anyone out.
fn of_node(view: &View, key: ServiceKey, name: &str) -> Option<String> {
    view.policy.of(key.protocol, key.port, &uplinks(view))?;
    let rules = shown(
        view.policy
            .about(key.protocol, key.port)
            .map(PolicyRule::to_string),
        "; ",
    );
    Some(format!(
        "{name} lets in clients as this node's own rules say (setting policy): {rules}"
    ))
}

/// One line for each interface that the node's own policy names and the mesh has no hook on.
#[must_use]
pub(crate) fn unknown_interfaces(view: &View) -> Vec<String> {
    let uplinks = uplinks(view);
    let line = |(interface, rule): (&str, &PolicyRule)| {
        format!(
            "{interface}, which the rule '{rule}' names, is not an interface of the mesh (see the setting uplink)"
        )
    };
    view.policy.unknown_interfaces(&uplinks).map(line).collect()
}

fn uplinks(view: &View) -> BTreeMap<&str, u32> {
    let uplinks = view.desired.uplinks.iter();
    uplinks
        .map(|(name, uplink)| (name.as_str(), uplink.index))
        .collect()
}

fn clients(name: &str, service: &Service) -> Option<String> {
    let prefixes = |prefixes: &[Prefix]| shown(prefixes.iter().map(Prefix::to_string), ",");
    let clients = &service.clients;
    let allowed = (!clients.allow.is_empty()).then(|| format!("mesh.allow={}", prefixes(&clients.allow)));
    let denied = (!clients.deny.is_empty()).then(|| format!("mesh.deny={}", prefixes(&clients.deny)));
    let labels: Vec<_> = allowed.into_iter().chain(denied).collect();
    (!labels.is_empty()).then(|| format!("{name} lets in clients as its labels say: {}", labels.join(" ")))
}

fn shown(texts: impl Iterator<Item = String>, separator: &str) -> String {
    first_few(texts, SHOWN, separator)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use super::*;
    use crate::{
        admin::{routes::routes, view::fixture},
        datapath::Counters,
        model::{Cluster, Desired, Frontend, NodePolicy},
    };

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn with(change: impl FnOnce(&mut Service), closed: &[Ipv4Addr]) -> View {
        let (mut view, _) = fixture::two_nodes();
        let mut cluster = Cluster::clone(&view.source.cluster);
        change(cluster.services.get_mut("web-id").unwrap());
        view.source.cluster = cluster.into();
        let mut desired = Desired::clone(&view.desired);
        let web = desired.services.values_mut().find(|entry| entry.id == "web-id");
        web.unwrap().closed = closed.iter().copied().collect();
        let frontend = desired
            .frontends
            .iter()
            .find(|frontend| frontend.address == OWN)
            .copied();
        desired.frontends.extend(frontend.map(|frontend| Frontend {
            address: OTHER,
            ..frontend
        }));
        view.desired = Arc::new(desired);
        view
    }

    #[test]
    fn addresses_that_are_closed_are_named_with_the_label() {
        assert_eq!(access_lines(&with(|_| {}, &[])), [""; 0]);
        let label =
            |service: &mut Service| service.publish_on.addresses = vec!["10.0.0.0/8".parse().unwrap()];
        let view = with(label, &[OWN]);
        let line = "web (tcp/9200) refuses clients at 192.168.0.1 (mesh.publish-on=10.0.0.0/8)";
        assert_eq!(access_lines(&view), [line]);
        let shown = routes(&view, &Counters::default());
        assert!(
            shown.notices.iter().any(|notice| notice == line),
            "{:?}",
            shown.notices
        );
        for row in shown
            .routes
            .iter()
            .filter(|row| row.service == "web" && row.port == 9200)
        {
            assert!(row.frontends.contains(&OTHER), "{row:?}");
            assert!(!row.frontends.contains(&OWN), "{row:?}");
            assert!(!row.reason.contains("mesh.publish-on"), "{row:?}");
        }
    }

    #[test]
    fn an_ipv6_address_that_is_closed_is_named_as_it_is() {
        let (fixture, _) = fixture::two_nodes();
        let mapped: Vec<_> = fixture.desired.own_ipv6.values().copied().collect();
        let lines = access_lines(&with(|_| {}, &mapped));
        assert!(lines[0].contains("refuses clients at 2001:db8::1"), "{lines:?}");
    }

    #[test]
    fn a_node_where_a_service_is_not_published_says_so_beside_its_replicas() {
        let label =
            |service: &mut Service| service.publish_on.addresses = vec!["2001:db9::/32".parse().unwrap()];
        let (fixture, _) = fixture::two_nodes();
        let ipv6 = fixture.desired.own_ipv6.values().copied();
        let view = with(label, &[OWN, OTHER].into_iter().chain(ipv6).collect::<Vec<_>>());
        let line = "web (tcp/9200) is not published on this node, whose own processes alone reach it \
                    (mesh.publish-on=2001:db9::/32)";
        assert_eq!(access_lines(&view), [line]);
        let shown = routes(&view, &Counters::default());
        let mut of_web = shown
            .routes
            .iter()
            .filter(|row| row.service == "web" && row.port == 9200);
        assert!(of_web.any(|row| row.reason.contains("mesh.publish-on")));
    }

    #[test]
    fn the_nodes_own_policy_is_shown_where_it_keeps_clients_out() {
        let mut view = with(|_| {}, &[]);
        let rules = ["allow 443", "deny 9200/tcp from 192.0.2.0/24", "deny any on eth9"];
        view.policy = NodePolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()).into();
        let lines = access_lines(&view);
        assert!(
            lines.contains(
                &"web (tcp/9200) lets in clients as this node's own rules say (setting policy): \
             deny 9200/tcp from 192.0.2.0/24; deny any on eth9"
                    .to_owned()
            ),
            "{lines:?}"
        );
        assert_eq!(
            unknown_interfaces(&view),
            [
                "eth9, which the rule 'deny any on eth9' names, is not an interface of the mesh (see the setting uplink)"
            ]
        );
        let status = crate::admin::status::status(&view, view.started);
        assert_eq!(status.policy, rules);
        assert!(
            status.errors.iter().any(|line| line.starts_with("policy: eth9")),
            "{:?}",
            status.errors
        );
    }

    #[test]
    fn labels_about_clients_and_interfaces_are_shown() {
        let view = with(
            |service| {
                service.publish_on.interfaces = vec!["eth1".to_owned()];
                service.clients.allow = vec!["192.0.2.0/24".parse().unwrap()];
                service.clients.deny = (0..9).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
            },
            &[],
        );
        let lines = access_lines(&view);
        assert!(lines.iter().any(|line| {
            line == "web (tcp/9200) refuses clients of the network that do not come in by eth1 (mesh.publish-on=eth1)"
        }), "{lines:?}");
        let clients = lines.iter().find(|line| line.contains("mesh.allow")).unwrap();
        assert!(
            clients.contains("mesh.allow=192.0.2.0/24 mesh.deny=192.0.2.0/32,"),
            "{clients}"
        );
        assert!(clients.ends_with("192.0.2.7/32 and 1 more"), "{clients}");
    }
}
