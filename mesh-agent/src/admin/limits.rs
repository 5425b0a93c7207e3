//! Services that get more new connections than their limits let in: from the agent's view. Pure.

use super::{View, api::LimitedService};
use crate::{
    datapath::limited::Dropped,
    model::{ServiceEntry, ServiceKey},
};

/// What the limits of new connections have dropped, one entry for each limit that has.
#[must_use]
pub(super) fn limited_services(view: &View) -> Vec<LimitedService> {
    let of = |(key, entry): (&ServiceKey, &ServiceEntry)| {
        let limited = view.limited.get(key).copied().unwrap_or_default();
        let line = |label: &str, limit: Option<u32>, dropped: Dropped| {
            (dropped.total > 0).then(|| LimitedService {
                service: entry.name.clone(),
                protocol: key.protocol,
                port: key.port,
                label: label.to_owned(),
                limit,
                dropped_last_minute: dropped.last_minute,
                dropped_total: dropped.total,
            })
        };
        let limits = entry.limits;
        [
            line("mesh.max-new-connections", limits.max_new, limited.max_new),
            line(
                "mesh.max-new-connections-per-source",
                limits.max_new_per_source,
                limited.max_new_per_source,
            ),
        ]
    };
    let services = view.desired.services.iter();
    services.flat_map(of).flatten().collect()
}

/// What limits keep out at present, and the services that are flooded; a line each.
#[must_use]
pub(super) fn limit_lines(view: &View) -> Vec<String> {
    let dropped = limited_services(view).into_iter().filter_map(|limited| {
        let LimitedService { service, label, .. } = &limited;
        (limited.dropped_last_minute > 0).then(|| {
            let (protocol, port) = (limited.protocol, limited.port);
            let limit = limited.limit.map(|limit| format!("={limit}")).unwrap_or_default();
            format!(
                "{service} ({protocol}/{port}): {} first packets of new connections were dropped in the last minute, \
                 past label {label}{limit}; clients send them again",
                limited.dropped_last_minute
            )
        })
    });
    let services = view.desired.services.iter();
    let is_flooded = |key: &ServiceKey| view.limited.get(key).is_some_and(|limited| limited.is_flooded);
    let flooded = services.filter(|(key, _)| is_flooded(key)).map(|(key, service)| {
        format!(
            "{} ({key}) gets more new connections per second than its flood limit: they have no flow entries until \
             they are open",
            service.name
        )
    });
    dropped.chain(flooded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::{routes::routes, status::status, view::fixture},
        datapath::limited::Limited,
        model::{Desired, Limits, Protocol},
    };

    const WEB: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    fn limited(limited: Limited) -> View {
        let (mut view, _) = fixture::two_nodes();
        let mut desired = Desired::clone(&view.desired);
        desired.services.get_mut(&WEB).unwrap().limits = Limits {
            max_new: Some(50),
            max_new_per_source: Some(5),
            flood: None,
        };
        view.desired = desired.into();
        view.limited = [(WEB, limited)].into();
        view
    }

    fn dropped(last_minute: u64, total: u64) -> Dropped {
        Dropped { last_minute, total }
    }

    #[test]
    fn what_a_limit_keeps_out_is_named_with_label_and_count() {
        let view = limited(Limited {
            is_flooded: false,
            max_new: dropped(0, 9),
            max_new_per_source: dropped(37, 120),
        });
        let status = status(&view, view.started);
        assert_eq!(
            status.errors,
            [
                "limits: web (tcp/9200): 37 first packets of new connections were dropped in the last minute, past label \
                 mesh.max-new-connections-per-source=5; clients send them again"
            ]
        );
        let counted: Vec<_> = (status.limited.iter())
            .map(|limited| (limited.limit, limited.dropped_last_minute, limited.dropped_total))
            .collect();
        assert_eq!(counted, [(Some(50), 0, 9), (Some(5), 37, 120)]);
        let doctor = crate::admin::examined::running(&view);
        assert!(doctor.problems[0].starts_with("web (tcp/9200): 37"));
    }

    #[test]
    fn a_flooded_service_is_named_in_the_status_and_beside_the_routes() {
        let view = limited(Limited {
            is_flooded: true,
            ..Limited::default()
        });
        let (_, counters) = fixture::two_nodes();
        let flooded = "web (tcp/9200) gets more new connections per second than its flood limit: they have no flow \
                       entries until they are open";
        assert_eq!(status(&view, view.started).errors, [format!("limits: {flooded}")]);
        assert_eq!(routes(&view, &counters).notices, [flooded]);
    }

    #[test]
    fn services_within_their_limits_are_not_named() {
        let view = limited(Limited::default());
        assert_eq!(limit_lines(&view), [""; 0]);
        assert_eq!(limited_services(&view), []);
    }
}
