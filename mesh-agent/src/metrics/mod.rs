//! The agent's Prometheus metrics: what the agent observes itself, and the text of a scrape. Reads the
//! agent's state through [`Introspect`], like the admin API.

use std::time::{Duration, SystemTime};

use prometheus::{Histogram, HistogramOpts, IntCounter, Registry, TextEncoder};

use crate::{admin::Introspect, datapath::DatapathError};

mod families;
mod ipv6;
mod limits;
mod samples;
pub mod server;
mod signals;

pub use server::{MetricsServer, MetricsServerError, serve};

/// From 1 ms, about the time for a map update and a list over a Unix socket, to more than a slow poll.
const PROGRAMMING_BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The counters could not be read.
    #[error("cannot read the traffic counters for the metrics; `meshctl doctor` shows what is missing")]
    Counters(#[source] DatapathError),
    /// A name or value is invalid in Prometheus' data model.
    #[error("cannot encode the metrics: this is a bug, please report it")]
    Encode(#[source] prometheus::Error),
}

/// The metrics that the agent observes itself, and whether each backend has series of its own.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    programming: Histogram,
    feed_refused: IntCounter,
    backend_series: bool,
}

impl Metrics {
    /// Metrics without observations. With `backend_series`, each backend has series of its own, besides those
    /// of the services.
    ///
    /// # Errors
    /// If a name were invalid or used twice, which those in this file are not.
    pub fn new(backend_series: bool) -> Result<Self, MetricsError> {
        let programming = Histogram::with_opts(
            HistogramOpts::new(
                "mesh_programming_duration_seconds",
                "Seconds from when the origin first saw a change (by Docker's event or a poll) until it took effect in \
                 this node's data path.",
            )
            .buckets(PROGRAMMING_BUCKETS.to_vec()),
        )
        .map_err(MetricsError::Encode)?;
        let feed_refused = IntCounter::new(
            "mesh_feed_refused_total",
            "Connections to this node's feed that were refused because the peer did not present a valid node \
             certificate of this cluster.",
        )
        .map_err(MetricsError::Encode)?;
        let registry = Registry::new();
        registry
            .register(Box::new(programming.clone()))
            .map_err(MetricsError::Encode)?;
        registry
            .register(Box::new(feed_refused.clone()))
            .map_err(MetricsError::Encode)?;
        Ok(Self {
            registry,
            programming,
            feed_refused,
            backend_series,
        })
    }

    /// Records that a change took effect that its origin first saw `duration` ago.
    pub fn observe_programming(&self, duration: Duration) {
        self.programming.observe(duration.as_secs_f64());
    }

    /// The counter of refused feed connections; clones count together.
    #[must_use]
    pub fn feed_refused(&self) -> IntCounter {
        self.feed_refused.clone()
    }

    /// The text of one scrape, in Prometheus' text format.
    ///
    /// # Errors
    /// When the counters cannot be read from the kernel.
    pub fn render(&self, agent: &dyn Introspect, now: SystemTime) -> Result<String, MetricsError> {
        let counters = agent.counters().map_err(MetricsError::Counters)?;
        let mut families = families::families(&agent.view(), &counters, self.backend_series, now);
        families.extend(self.registry.gather());
        families.sort_by(|left, right| left.name().cmp(right.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .map_err(MetricsError::Encode)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::admin::view::fixture;

    fn render(backend_series: bool) -> String {
        let metrics = Metrics::new(backend_series).unwrap();
        metrics.observe_programming(Duration::from_millis(3));
        metrics.feed_refused().inc();
        let agent = fixture::still();
        let now = agent.view().started + Duration::from_secs(10);
        metrics.render(agent.as_ref(), now).unwrap()
    }

    /// Needs promtool, from Debian's package prometheus.
    #[test]
    fn promtool_accepts_the_metrics_without_a_remark() {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool must be installed: apt-get install prometheus");
        let mut input = child.stdin.take().unwrap();
        input.write_all(render(true).as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let remarks = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(
            output.status.success() && remarks.concat().is_empty(),
            "{remarks:?}"
        );
    }

    #[test]
    fn every_documented_series_is_there() {
        let text = render(true);
        let backend = r#"backend="10.0.0.5:80",port="9200",protocol="tcp",service="web""#;
        for line in [
            format!("mesh_backend_connections_total{{{backend}}} 7"),
            format!("mesh_backend_connections_active{{{backend}}} 2"),
            format!(r#"mesh_backend_bytes_total{{direction="out",{backend}}} 300000"#),
            format!(r#"mesh_backend_packets_total{{direction="in",{backend}}} 40"#),
            format!("mesh_backend_connections_refused_total{{{backend}}} 2"),
            format!("mesh_backend_connections_unanswered_total{{{backend}}} 1"),
            format!("mesh_backend_syns_retransmitted_total{{{backend}}} 3"),
            format!(r#"mesh_backend_connections_reset_total{{from="client",{backend}}} 4"#),
            format!(r#"mesh_backend_connections_reset_total{{from="backend",{backend}}} 5"#),
            format!(r#"mesh_backend_connect_duration_seconds_bucket{{{backend},le="0.00005"}} 0"#),
            format!(r#"mesh_backend_connect_duration_seconds_bucket{{{backend},le="0.0005"}} 3"#),
            format!(r#"mesh_backend_connect_duration_seconds_bucket{{{backend},le="1"}} 3"#),
            format!(r#"mesh_backend_connect_duration_seconds_bucket{{{backend},le="+Inf"}} 4"#),
            format!("mesh_backend_connect_duration_seconds_sum{{{backend}}} 2.0009"),
            format!("mesh_backend_connect_duration_seconds_count{{{backend}}} 4"),
            format!("mesh_backend_weight{{{backend}}} 1"),
            format!("mesh_backend_unanswered_opens{{{backend}}} 0"),
            format!(r#"mesh_backend_state{{state="active",{backend}}} 1"#),
            format!(r#"mesh_backend_state{{state="draining",{backend}}} 0"#),
            format!(r#"mesh_backend_info{{node="n1",slot="1",task="web.1",{backend}}} 1"#),
            r#"mesh_service_connections_total{port="53",protocol="udp",service="dns"} 7"#.to_owned(),
            r#"mesh_service_backends{port="53",protocol="udp",service="dns",state="active"} 0"#.to_owned(),
            r#"mesh_service_replicas_wanted{service="worker"} 3"#.to_owned(),
            r#"mesh_service_replicas_running{service="worker"} 2"#.to_owned(),
            r#"mesh_drops_total{hook="xdp",reason="unknown_peer"} 3"#.to_owned(),
            r#"mesh_map_entries{map="flows"} 14"#.to_owned(),
            r#"mesh_map_max_entries{map="flows"} 262144"#.to_owned(),
            r#"mesh_flow_evictions_total{state="open"} 0"#.to_owned(),
            r#"mesh_flow_evictions_total{state="half_open"} 9"#.to_owned(),
            "mesh_flows_not_opened_total 3".to_owned(),
            "mesh_unknown_flow_packets_total 11".to_owned(),
            "mesh_answers_suppressed_total 13".to_owned(),
            "mesh_untracked_packets_total 17".to_owned(),
            "mesh_packets_sent_back_total 5".to_owned(),
            "mesh_flows_moved_total 6".to_owned(),
            "mesh_flows_adopted_total 12".to_owned(),
            "mesh_frames_for_other_machines_total 19".to_owned(),
            r#"mesh_datapath_info{datapath="ebpf",reason="eth0: XDP is off",rung="tc"} 1"#.to_owned(),
            "mesh_datapath_steps_down_total 2".to_owned(),
            "mesh_ipv6_addresses 1".to_owned(),
            "mesh_model_revision 4".to_owned(),
            "mesh_model_age_seconds 8".to_owned(),
            "mesh_peers 2".to_owned(),
            r#"mesh_peer_silent{peer="n2"} 0"#.to_owned(),
            r#"mesh_peer_silent{peer="n3"} 1"#.to_owned(),
            r#"mesh_peer_round_trip_seconds{peer="n2"} 0.002"#.to_owned(),
            r#"mesh_peer_path_mtu_bytes{peer="n2"} 1400"#.to_owned(),
            "mesh_feed_refused_total 1".to_owned(),
            "mesh_programming_duration_seconds_count 1".to_owned(),
            r#"mesh_programming_duration_seconds_bucket{le="0.005"} 1"#.to_owned(),
        ] {
            let wanted = normal(&line);
            assert!(
                text.lines().any(|found| normal(found) == wanted),
                "{line}\n{text}"
            );
        }
        assert!(text.contains("mesh_build_info{"));
        assert!(text.contains(r#"reason="veth: \"generic\" XDP is off\\ here""#));
    }

    /// The parts of a line in one order, as the order of labels has no meaning.
    fn normal(line: &str) -> Vec<String> {
        let mut parts: Vec<_> = line.split(['{', '}', ',']).map(str::to_owned).collect();
        parts.sort();
        parts
    }

    #[test]
    fn a_backend_whose_data_path_does_not_count_its_answers_has_no_series_of_them() {
        let text = render(true);
        let has = |name: &str, of: &str| {
            text.lines()
                .any(|line| line.starts_with(name) && line.contains(of))
        };
        let udp = r#"port="53",protocol="udp""#;
        assert!(has("mesh_backend_connect_duration_seconds_count", "9200"));
        for name in ["connections_refused", "connections_reset", "connect_duration"] {
            assert!(!has(&format!("mesh_backend_{name}"), udp), "{name}\n{text}");
        }
    }

    #[test]
    fn backend_series_can_be_switched_off_while_service_series_stay() {
        let text = render(false);
        assert!(!text.contains("mesh_backend_"), "{text}");
        assert!(text.contains("mesh_service_connections_total{"));
    }
}
