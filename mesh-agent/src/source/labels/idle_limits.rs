//! The labels that say for how long a service's flows may be idle, or drain. Pure.

use std::{ops::RangeInclusive, time::Duration};

use mesh_support::duration;

use super::LabelError;
use crate::{docker::api::Labels, model::IdleLimits};

/// Of open TCP connections.
pub(crate) const TCP: &str = "mesh.idle-timeout";
/// Of UDP.
pub(crate) const UDP: &str = "mesh.udp-timeout";

/// Of connections to a replica that drains.
const DRAIN: &str = "mesh.drain-timeout";

/// The data path counts seconds. Linux's connection tracking forgets a connection after five days.
const ALLOWED: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 60 * 60);

/// What a service's labels ask for, and what of them is invalid.
pub(super) fn idle_limits(name: &str, labels: &Labels) -> (IdleLimits, Vec<LabelError>) {
    let mut errors = Vec::new();
    let limits = IdleLimits {
        tcp: seconds(name, labels, TCP, "2h15m", &mut errors),
        udp: seconds(name, labels, UDP, "2m", &mut errors),
    };
    (limits, errors)
}

/// After how many seconds of a drain a service's label has connections reset, and whether it is invalid.
pub(super) fn drain_timeout(name: &str, labels: &Labels) -> (Option<u32>, Vec<LabelError>) {
    let mut errors = Vec::new();
    let timeout = seconds(name, labels, DRAIN, "no time-out", &mut errors);
    (timeout, errors)
}

/// A label's time in seconds, rounded up.
fn seconds(
    name: &str,
    labels: &Labels,
    label: &str,
    default: &str,
    errors: &mut Vec<LabelError>,
) -> Option<u32> {
    let value = labels.get(label)?;
    let time = duration::parse(value.trim()).ok();
    let time = time.filter(|time| ALLOWED.contains(time));
    if time.is_none() {
        let [shortest, longest] = [ALLOWED.start(), ALLOWED.end()].map(|time| duration::format(*time));
        let expected = format!("a time from {shortest} to {longest}, like 30m");
        errors.push(LabelError::of_service(name, label, value, expected, default));
    }
    time.map(|time| time.as_millis().div_ceil(1000) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (IdleLimits, Vec<String>) {
        let labels = pairs
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let (limits, errors) = idle_limits("web", &labels);
        (limits, errors.iter().map(LabelError::to_string).collect())
    }

    #[test]
    fn times_are_read_in_seconds_and_rounded_up() {
        assert_eq!(of(&[]), (IdleLimits::default(), vec![]));
        let limits = |tcp, udp| IdleLimits { tcp, udp };
        assert_eq!(of(&[(TCP, " 30m ")]), (limits(Some(1800), None), vec![]));
        assert_eq!(of(&[(UDP, "1500ms")]), (limits(None, Some(2)), vec![]));
        let both = of(&[(TCP, "168h"), (UDP, "1s")]);
        assert_eq!(both, (limits(Some(604_800), Some(1)), vec![]));
    }

    #[test]
    fn a_drain_time_out_is_read_as_the_others_are() {
        let of = |value: &str| {
            let labels = [(DRAIN.to_owned(), value.to_owned())].into();
            let (timeout, errors) = drain_timeout("web", &labels);
            (
                timeout,
                errors.iter().map(LabelError::to_string).collect::<Vec<_>>(),
            )
        };
        assert_eq!(of("60s"), (Some(60), vec![]));
        assert_eq!(
            of("never"),
            (
                None,
                vec![
                    "label mesh.drain-timeout=never of service web: expected a time from 1s to 168h, like 30m; \
                     using no time-out"
                        .to_owned()
                ]
            )
        );
        assert_eq!(drain_timeout("web", &Labels::new()), (None, vec![]));
    }

    #[test]
    fn what_is_no_time_or_out_of_bounds_leaves_the_default() {
        for value in ["", "0", "0s", "999ms", "169h", "600", "forever", "-1s"] {
            let (limits, errors) = of(&[(TCP, value), (UDP, "10s")]);
            let udp = Some(10);
            assert_eq!(limits, IdleLimits { tcp: None, udp }, "{value}");
            assert_eq!(
                errors,
                [format!(
                    "label mesh.idle-timeout={value} of service web: expected a time from 1s to 168h, like 30m; using \
                     2h15m"
                )]
            );
        }
    }
}
