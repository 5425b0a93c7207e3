//! What of the health checks an operator has to know: from the agent's view. Pure.

use super::View;
use crate::model::{ServiceKey, desired::failing_open};

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
