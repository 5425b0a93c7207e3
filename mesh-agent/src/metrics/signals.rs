//! Families of how backends answer the connections that they are asked to open. Pure.

use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};

use super::samples::{Labels, counter, family, pairs, sample, with};
use crate::datapath::{AnswerTimes, Signals};

const NANOSECONDS: f64 = 1e9;

/// The families, without a backend yet.
pub(super) struct SignalFamilies {
    refused: MetricFamily,
    unanswered: MetricFamily,
    retransmitted: MetricFamily,
    reset: MetricFamily,
    answers: MetricFamily,
}

impl SignalFamilies {
    pub(super) fn new() -> Self {
        let entered = "Counts TCP connections that entered the mesh at this node (eBPF).";
        let unseen = "In dsr mode this node does not see answers of backends on other nodes.";
        Self {
            refused: counter(
                "mesh_backend_connections_refused_total",
                &format!("Connections whose SYN the backend answered with a RST. {entered} {unseen}"),
            ),
            unanswered: counter(
                "mesh_backend_connections_unanswered_total",
                &format!(
                    "Connections whose client had to send its SYN again because the backend had not answered, or whose \
                     SYN its node could not deliver; each counts once. {entered} {unseen}"
                ),
            ),
            retransmitted: counter(
                "mesh_backend_syns_retransmitted_total",
                &format!("SYNs that clients sent again before their connection was open. {entered}"),
            ),
            reset: counter(
                "mesh_backend_connections_reset_total",
                &format!(
                    "Open connections that ended with a RST, by who sent it first: from=\"client\" or from=\"backend\". \
                     {entered} {unseen}"
                ),
            ),
            answers: family(
                "mesh_backend_connect_duration_seconds",
                &format!(
                    "Seconds from a client's first SYN to the backend's SYN-ACK, both as they pass this node. {entered} \
                     {unseen}"
                ),
                MetricType::HISTOGRAM,
            ),
        }
    }

    pub(super) fn add(&mut self, labels: &Labels, signals: &Signals) {
        sample(&mut self.refused, labels.clone(), signals.refused);
        sample(&mut self.unanswered, labels.clone(), signals.unanswered);
        sample(
            &mut self.retransmitted,
            labels.clone(),
            signals.syns_retransmitted,
        );
        for (from, count) in [
            ("client", signals.reset_by_clients),
            ("backend", signals.reset_by_backend),
        ] {
            sample(&mut self.reset, with(labels, "from", from), count);
        }
        let mut metric = Metric::from_label(pairs(labels.clone()));
        metric.set_histogram(histogram(&signals.answers));
        self.answers.mut_metric().push(metric);
    }

    pub(super) fn into_families(self) -> [MetricFamily; 5] {
        [
            self.refused,
            self.unanswered,
            self.retransmitted,
            self.reset,
            self.answers,
        ]
    }
}

/// Prometheus' buckets have all that is up to their bound; the one without a bound is the count.
fn histogram(times: &AnswerTimes) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.set_sample_sum(times.sum as f64 / NANOSECONDS);
    histogram.set_sample_count(times.count());
    let mut up_to = 0;
    let buckets = AnswerTimes::BOUNDS.iter().zip(&times.counts);
    let buckets = buckets.map(|(bound, count)| {
        up_to += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / NANOSECONDS);
        bucket.set_cumulative_count(up_to);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram
}
