//! What of the health checks an operator has to know: from the agent's view. Pure.

use std::collections::BTreeMap;

use super::View;
use crate::model::{ServiceEntry, ServiceId, ServiceKey, desired::failing_open};

/// A line names so many replicas.
const SHOWN: usize = 8;

/// The services all of whose replicas fail their check, so that all are tried.
#[must_use]
pub fn failing_services(view: &View) -> Vec<ServiceKey> {
    failing_open(&view.desired, view.checks())
}

/// One line for each of them, with the replicas' reasons.
#[must_use]
pub fn failing_lines(view: &View) -> Vec<String> {
    let checks = view.checks();
    let line = |key: ServiceKey| {
        let service = view.desired.services.get(&key)?;
        let backends = service.active.iter();
        let reasons: Vec<_> = backends
            .filter_map(|backend| {
                let backend = view.desired.backends.get(backend)?;
                let reason = checks.failure(&backend.task)?;
                Some(format!("{}: {reason}", backend.task_name))
            })
            .take(SHOWN)
            .collect();
        let more = service.active.len().saturating_sub(reasons.len());
        let more = if more > 0 {
            format!(", and {more} more")
        } else {
            String::new()
        };
        Some(format!(
            "every replica of {} ({} {}) fails its check, so all are tried ({}{more})",
            service.name,
            key.protocol,
            key.port,
            reasons.join(", ")
        ))
    };
    failing_services(view).into_iter().filter_map(line).collect()
}

/// Why nothing is sent to a replica that the mesh cannot reach on its own node.
pub(super) const OUT_OF_REACH: &str = "no bridge of its node leads to its container: its default route is another \
                                       network's (such as a macvlan's)";

/// The services with replicas that the mesh cannot reach on their own nodes, and how many those are.
#[must_use]
pub fn out_of_reach(view: &View) -> Vec<(ServiceKey, &ServiceEntry, usize)> {
    let checks = view.checks();
    let mut counts: BTreeMap<&ServiceId, usize> = BTreeMap::new();
    for (id, task) in &view.source.cluster.tasks {
        if checks.is_out_of_reach(id) {
            *counts.entry(&task.service).or_default() += 1;
        }
    }
    let services = view.desired.services.iter();
    services
        .filter_map(|(key, service)| Some((*key, service, *counts.get(&service.id)?)))
        .collect()
}

/// One line for each of them.
#[must_use]
pub fn out_of_reach_lines(view: &View) -> Vec<String> {
    let line = |(key, service, count): (ServiceKey, &ServiceEntry, usize)| {
        let left = if service.active.is_empty() {
            "; the port is left to Docker's own mesh"
        } else {
            ""
        };
        format!(
            "the mesh cannot reach {count} of the replicas of {} ({key}): {OUT_OF_REACH}{left}",
            service.name
        )
    };
    out_of_reach(view).into_iter().map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        admin::view::fixture,
        model::{Cluster, HealthCheck, HealthProbe},
    };

    /// The fixture, where the replica on the second node fails its check, and the own one if asked for.
    pub(crate) fn with_failures(own: bool) -> View {
        let (mut view, _) = fixture::two_nodes();
        let mut cluster = Cluster::clone(&view.source.cluster);
        let web = cluster.services.get_mut("web-id").unwrap();
        web.health = Some(HealthCheck {
            probe: HealthProbe::Tcp,
            port: 80,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
        });
        let there = cluster.nodes.get_mut("id2").unwrap();
        there.failed.insert("t2".to_owned(), "HTTP status 500");
        if own {
            view.failed.insert("t1".to_owned(), "connection refused");
        }
        view.source.cluster = cluster.into();
        view
    }

    #[test]
    fn a_service_with_replicas_that_no_bridge_leads_to_is_named() {
        let (mut view, counters) = fixture::two_nodes();
        assert_eq!(out_of_reach_lines(&view), [""; 0]);
        let mut cluster = Cluster::clone(&view.source.cluster);
        let there = cluster.nodes.get_mut("id2").unwrap();
        there.failed.insert_out_of_reach("t2".to_owned());
        view.source.cluster = cluster.into();
        let lines = out_of_reach_lines(&view);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with("the mesh cannot reach 1 of the replicas of web (tcp/9200): no bridge"),
            "{lines:?}"
        );
        assert!(
            !lines[0].contains("left to Docker"),
            "others are active: {lines:?}"
        );
        assert_eq!(failing_lines(&view), [""; 0], "it is no failed check");
        let notices = crate::admin::routes::routes(&view, &counters).notices;
        assert!(notices.contains(&lines[0]), "{notices:?}");
    }

    #[test]
    fn a_service_all_of_whose_replicas_fail_is_named_with_the_reasons() {
        assert_eq!(failing_lines(&with_failures(false)), [""; 0]);
        assert_eq!(
            failing_lines(&with_failures(true)),
            [
                "every replica of web (tcp 9200) fails its check, so all are tried (web.1: connection refused, web.2: \
                 HTTP status 500)"
            ]
        );
    }
}
