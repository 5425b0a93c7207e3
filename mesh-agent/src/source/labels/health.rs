//! The labels that ask for health checks of a service's replicas. Pure.

use std::{ops::RangeInclusive, time::Duration};

use mesh_support::duration;

use super::LabelError;
use crate::{
    docker::api::Labels,
    model::{HealthCheck, HealthProbe, Protocol, PublishedPort},
};

/// What to ask of a replica.
const HEALTH: &str = "mesh.health";
/// Which port inside the container to ask.
const PORT: &str = "mesh.health-port";
/// From one check to the next.
const INTERVAL: &str = "mesh.health-interval";
/// For how long to wait for the answer.
const TIMEOUT: &str = "mesh.health-timeout";
/// So many failures in a row take a replica out of rotation. (HAProxy's name, as `rise`.)
const FALL: &str = "mesh.health-fall";
/// So many successes in a row bring it back.
const RISE: &str = "mesh.health-rise";

const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_FALL: u32 = 3;
const DEFAULT_RISE: u32 = 2;

/// Shorter ones would cost the replicas more than they find out.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(60 * 60);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const MAX_IN_A_ROW: u32 = 100;
const MAX_PATH: usize = 256;

/// How a service's replicas are checked, and the labels of it that are invalid.
pub(super) fn health(
    name: &str,
    labels: &Labels,
    ports: &[PublishedPort],
) -> (Option<HealthCheck>, Vec<LabelError>) {
    let mut found = Found {
        name,
        labels,
        errors: Vec::new(),
    };
    found.refuse_unknown();
    let probe = labels.get(HEALTH).and_then(|value| {
        let probe = probe(value.trim());
        if probe.is_none() {
            found.refuse(
                HEALTH,
                value,
                "tcp, or http: and a path like http:/health",
                "no check",
            );
        }
        probe
    });
    let given = labels.get(PORT);
    let first = ports
        .iter()
        .find(|port| port.protocol == Protocol::Tcp)
        .map(|port| port.target);
    let port = match given {
        Some(value) => value.trim().parse().ok().filter(|port| *port != 0),
        None => first,
    };
    let (Some(probe), Some(port)) = (&probe, port) else {
        match (probe, given) {
            (Some(_), Some(value)) => {
                found.refuse(PORT, value, "a port from 1 to 65535", "no check");
            }
            (Some(_), None) => {
                let value = labels.get(HEALTH).map_or("", String::as_str);
                let expected = "mesh.health-port beside it, as the service publishes no TCP port";
                found.refuse(HEALTH, value, expected, "no check");
            }
            (None, _) if !labels.contains_key(HEALTH) => found.refuse_all(),
            (None, _) => {}
        }
        return (None, found.errors);
    };
    let check = HealthCheck {
        probe: probe.clone(),
        port,
        interval: found.time(INTERVAL, INTERVALS, DEFAULT_INTERVAL),
        timeout: found.time(TIMEOUT, TIMEOUTS, DEFAULT_TIMEOUT),
        fall: found.number(FALL, DEFAULT_FALL),
        rise: found.number(RISE, DEFAULT_RISE),
    };
    (Some(check), found.errors)
}

/// The labels of a service whose replicas the mesh does not check.
pub(super) fn refused(name: &str, labels: &Labels) -> Vec<LabelError> {
    let mut found = Found {
        name,
        labels,
        errors: Vec::new(),
    };
    for (label, value) in about_health(labels) {
        let expected = "the service's own check instead (--health-http, --health-tcp)";
        found.refuse(label, value, expected, "that");
    }
    found.errors
}

fn probe(value: &str) -> Option<HealthProbe> {
    if value == "tcp" {
        return Some(HealthProbe::Tcp);
    }
    let path = value.strip_prefix("http:")?;
    let plain = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\');
    // Not `//`: what follows would be a host.
    (path.starts_with('/') && !path.starts_with("//") && plain && path.len() <= MAX_PATH).then(|| {
        HealthProbe::Http {
            path: path.to_owned(),
        }
    })
}

fn about_health(labels: &Labels) -> impl Iterator<Item = (&str, &str)> {
    let labels = labels.iter().filter(|(label, _)| label.starts_with(HEALTH));
    labels.map(|(label, value)| (label.as_str(), value.as_str()))
}

/// A service's labels, and what was wrong with them.
struct Found<'a> {
    name: &'a str,
    labels: &'a Labels,
    errors: Vec<LabelError>,
}

impl Found<'_> {
    fn refuse(&mut self, label: &str, value: &str, expected: &str, instead: &str) {
        let error = LabelError::of_service(self.name, label, value, expected, instead);
        self.errors.push(error);
    }

    /// A label that is misspelt would change nothing without a message.
    fn refuse_unknown(&mut self) {
        const KNOWN: [&str; 6] = [HEALTH, PORT, INTERVAL, TIMEOUT, FALL, RISE];
        for (label, value) in about_health(self.labels) {
            if !KNOWN.contains(&label) {
                self.refuse(
                    label,
                    value,
                    &format!("one of {}", KNOWN.join(", ")),
                    "nothing of it",
                );
            }
        }
    }

    fn refuse_all(&mut self) {
        for label in [PORT, INTERVAL, TIMEOUT, FALL, RISE] {
            if let Some(value) = self.labels.get(label) {
                self.refuse(label, value, "mesh.health beside it", "no check");
            }
        }
    }

    fn time(&mut self, label: &str, allowed: RangeInclusive<Duration>, default: Duration) -> Duration {
        let Some(value) = self.labels.get(label) else {
            return default;
        };
        let time = duration::parse(value.trim()).ok();
        time.filter(|time| allowed.contains(time)).unwrap_or_else(|| {
            let [shortest, longest] = [allowed.start(), allowed.end()].map(|time| duration::format(*time));
            let expected = format!("a time from {shortest} to {longest}, like 2s");
            self.refuse(label, value, &expected, &duration::format(default));
            default
        })
    }

    fn number(&mut self, label: &str, default: u32) -> u32 {
        let Some(value) = self.labels.get(label) else {
            return default;
        };
        super::within(value, MAX_IN_A_ROW).unwrap_or_else(|| {
            let expected = format!("a number from 1 to {MAX_IN_A_ROW}");
            self.refuse(label, value, &expected, &default.to_string());
            default
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: [PublishedPort; 2] = [port(Protocol::Tcp, 80), port(Protocol::Udp, 53)];

    const fn port(protocol: Protocol, target: u16) -> PublishedPort {
        PublishedPort {
            protocol,
            published: 9200,
            target,
        }
    }

    fn parse(ports: &[PublishedPort], pairs: &[(&str, &str)]) -> (Option<HealthCheck>, Vec<String>) {
        let labels = pairs.iter();
        let labels = labels.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (check, errors) = health("web", &labels.collect(), ports);
        (check, errors.iter().map(ToString::to_string).collect())
    }

    fn http(path: &str) -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Http {
                path: path.to_owned(),
            },
            port: 80,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_TIMEOUT,
            fall: DEFAULT_FALL,
            rise: DEFAULT_RISE,
        }
    }

    #[test]
    fn without_the_label_nothing_is_checked() {
        assert_eq!(parse(&PORTS, &[("mesh.scheduler", "rr")]), (None, vec![]));
    }

    #[test]
    fn the_label_alone_checks_the_port_that_is_published_with_the_defaults() {
        assert_eq!(
            parse(&PORTS, &[("mesh.health", "http:/ready?deep=1")]),
            (Some(http("/ready?deep=1")), vec![])
        );
        let tcp = HealthCheck {
            probe: HealthProbe::Tcp,
            ..http("")
        };
        assert_eq!(parse(&PORTS, &[("mesh.health", " tcp ")]), (Some(tcp), vec![]));
    }

    #[test]
    fn port_times_and_thresholds_are_settings() {
        let (check, errors) = parse(
            &PORTS[1..],
            &[
                ("mesh.health", "http:/"),
                ("mesh.health-port", "8081"),
                ("mesh.health-interval", "1m30s"),
                ("mesh.health-timeout", "250ms"),
                ("mesh.health-fall", "1"),
                ("mesh.health-rise", "5"),
            ],
        );
        let expected = HealthCheck {
            port: 8081,
            interval: Duration::from_secs(90),
            timeout: Duration::from_millis(250),
            fall: 1,
            rise: 5,
            ..http("/")
        };
        assert_eq!((check, errors), (Some(expected), vec![]));
    }

    #[test]
    fn what_cannot_be_asked_is_no_check() {
        for value in [
            "",
            "udp",
            "http",
            "http:",
            "http:x",
            "http://host/",
            "http:/a b",
            "http:/a#b",
            "TCP",
        ] {
            let (check, errors) = parse(&PORTS, &[("mesh.health", value)]);
            assert_eq!(check, None, "{value}");
            assert_eq!(
                errors,
                [format!(
                    "label mesh.health={value} of service web: expected tcp, or http: and a path like http:/health; \
                     using no check"
                )]
            );
        }
        let (check, errors) = parse(&PORTS, &[("mesh.health", "tcp"), ("mesh.health-port", "0")]);
        assert!(
            check.is_none() && errors[0].contains("a port from 1 to 65535"),
            "{errors:?}"
        );
        let (check, errors) = parse(&PORTS[1..], &[("mesh.health", "tcp")]);
        assert!(
            check.is_none() && errors[0].contains("publishes no TCP port"),
            "{errors:?}"
        );
    }

    #[test]
    fn an_invalid_setting_leaves_its_default_and_the_check() {
        let (check, errors) = parse(
            &PORTS,
            &[
                ("mesh.health", "http:/"),
                ("mesh.health-interval", "10ms"),
                ("mesh.health-timeout", "2"),
                ("mesh.health-fall", "0"),
                ("mesh.health-rise", "many"),
            ],
        );
        assert_eq!(check, Some(http("/")));
        assert_eq!(
            errors,
            [
                "label mesh.health-interval=10ms of service web: expected a time from 500ms to 1h, like 2s; using 2s",
                "label mesh.health-timeout=2 of service web: expected a time from 10ms to 1m, like 2s; using 1s",
                "label mesh.health-fall=0 of service web: expected a number from 1 to 100; using 3",
                "label mesh.health-rise=many of service web: expected a number from 1 to 100; using 2",
            ]
        );
    }

    #[test]
    fn settings_without_the_label_and_misspelt_ones_are_reported() {
        let (check, errors) = parse(&PORTS, &[("mesh.health-fall", "3"), ("mesh.healthy", "tcp")]);
        assert_eq!(check, None);
        assert_eq!(
            errors,
            [
                "label mesh.healthy=tcp of service web: expected one of mesh.health, mesh.health-port, \
                 mesh.health-interval, mesh.health-timeout, mesh.health-fall, mesh.health-rise; using nothing of it",
                "label mesh.health-fall=3 of service web: expected mesh.health beside it; using no check",
            ]
        );
    }
}
