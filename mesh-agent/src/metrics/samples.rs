//! What families are made of: samples and their labels. Pure.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::model::ServiceKey;

pub(super) type Labels = Vec<(&'static str, String)>;

/// The labels of every series about a service.
pub(super) fn service_labels(key: ServiceKey, name: &str) -> Labels {
    vec![
        ("service", name.to_owned()),
        ("port", key.port.to_string()),
        ("protocol", key.protocol.to_string()),
    ]
}

pub(super) fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((name, value.to_owned()));
    labels
}

pub(super) fn counter(name: &str, help: &str) -> MetricFamily {
    family(name, help, MetricType::COUNTER)
}

pub(super) fn gauge(name: &str, help: &str) -> MetricFamily {
    family(name, help, MetricType::GAUGE)
}

pub(super) fn family(name: &str, help: &str, kind: MetricType) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family
}

/// Prometheus' values are `f64`: totals above 2^53 lose their last digits, which does not matter for rates.
pub(super) fn sample(family: &mut MetricFamily, labels: Labels, value: u64) {
    let value = value as f64;
    let metric = if family.get_field_type() == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_counter(counter);
        metric
    } else {
        gauge_metric(labels, value)
    };
    family.mut_metric().push(metric);
}

pub(super) fn gauge_metric(labels: Labels, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_gauge(gauge);
    metric
}

pub(super) fn pairs(labels: Labels) -> Vec<LabelPair> {
    labels
        .into_iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        })
        .collect()
}
