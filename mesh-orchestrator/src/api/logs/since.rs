//! The argument `since` of logs, as Docker accepts it.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{objects::Timestamp, spec::duration};

/// Parses a time (RFC 3339, or seconds since 1970) or a duration before `now` (`10m`).
pub(super) fn parse_since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        let milliseconds = time.unix_timestamp_nanos() / 1_000_000;
        return u64::try_from(milliseconds).ok().map(Timestamp);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(seconds) && digits(fraction) {
        let seconds = Duration::from_secs(seconds.parse().ok()?);
        let milliseconds = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
        return Some(Timestamp(0) + seconds + Duration::from_millis(milliseconds));
    }
    duration::parse(text).ok().map(|ago| now - ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_a_duration_before_now() {
        let now = Timestamp(1_000_000);
        for (text, expected) in [
            ("1970-01-01T00:00:01.5Z", Some(1500)),
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("2", Some(2000)),
            ("2.25", Some(2250)),
            ("2.123456789", Some(2123)),
            ("10s", Some(990_000)),
            ("1h", Some(0)),
            ("yesterday", None),
            ("", None),
            ("1.2.3", None),
        ] {
            assert_eq!(parse_since(text, now), expected.map(Timestamp), "{text}");
        }
    }

    #[test]
    fn the_time_in_a_request_to_another_node_is_parsed() {
        assert_eq!(parse_since("61.005", Timestamp(0)), Some(Timestamp(61_005)));
    }
}
