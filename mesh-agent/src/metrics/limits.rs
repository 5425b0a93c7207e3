//! Metric families on what the limits of new connections do. Pure.

use prometheus::proto::MetricFamily;

use super::samples::{counter, gauge, sample, service_labels, with};
use crate::admin::View;

pub(super) fn families(view: &View) -> [MetricFamily; 2] {
    let mut flooded = gauge(
        "mesh_service_flooded",
        "1 while the service gets more new connections per second at this node than its flood limit.",
    );
    let mut dropped = counter(
        "mesh_service_connections_limited_total",
        "First packets of new connections that this node dropped because of a limit of the service, named by the \
         label: the service's (max_new_connections) or that of one client (max_new_connections_per_source). Only of \
         services that have the limit.",
    );
    for (key, service) in &view.desired.services {
        let labels = service_labels(*key, &service.name);
        let limited = view.limited.get(key).copied().unwrap_or_default();
        sample(&mut flooded, labels.clone(), u64::from(limited.is_flooded));
        let limits = service.limits;
        for (name, limit, counted) in [
            ("max_new_connections", limits.max_new, limited.max_new),
            (
                "max_new_connections_per_source",
                limits.max_new_per_source,
                limited.max_new_per_source,
            ),
        ] {
            if limit.is_some() {
                sample(&mut dropped, with(&labels, "limit", name), counted.total);
            }
        }
    }
    [flooded, dropped]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::view::fixture,
        datapath::limited::{Dropped, Limited},
        model::{Desired, Limits, Protocol, ServiceKey},
    };

    #[test]
    fn drops_are_counted_for_each_limit_that_a_service_has() {
        let (mut view, _) = fixture::two_nodes();
        let [flooded, dropped] = families(&view);
        assert_eq!(flooded.get_metric().len(), view.desired.services.len());
        assert!(dropped.get_metric().is_empty());
        let web = ServiceKey {
            protocol: Protocol::Tcp,
            port: 9200,
        };
        let mut desired = Desired::clone(&view.desired);
        desired.services.get_mut(&web).unwrap().limits = Limits {
            max_new: Some(5),
            ..Limits::default()
        };
        view.desired = desired.into();
        let limited = Limited {
            is_flooded: true,
            max_new: Dropped {
                last_minute: 1,
                total: 12,
            },
            ..Limited::default()
        };
        view.limited = [(web, limited)].into();
        let [flooded, dropped] = families(&view);
        assert_eq!(dropped.get_metric().len(), 1);
        assert_eq!(dropped.get_metric()[0].get_counter().get_value(), 12.0);
        let values = flooded
            .get_metric()
            .iter()
            .map(|metric| metric.get_gauge().get_value());
        assert_eq!(values.sum::<f64>(), 1.0);
    }
}
