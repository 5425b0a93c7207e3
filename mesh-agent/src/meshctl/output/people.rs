//! Values as the docker CLI shows them: ages, shortened ids, images without digests. Pure.

use std::{cmp::Ordering, time::Duration};

use mesh_orchestrator::objects::Timestamp;
use time::{OffsetDateTime, macros::format_description};
use unicode_width::UnicodeWidthChar;

/// Number of characters shown of an id.
const SHORT_ID: usize = 12;

/// `5 seconds`, `About a minute`, `2 weeks`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let hours = (seconds + 1800) / 3600;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A duration as Go prints it, and docker in `--pretty` and in templates: `500ms`, `1m0s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let (seconds, milliseconds) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 && milliseconds > 0 {
        return format!("{milliseconds}ms");
    }
    let fraction = match format!("{milliseconds:03}").trim_end_matches('0') {
        "" => String::new(),
        digits => format!(".{digits}"),
    };
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}{fraction}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}{fraction}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

/// `5 seconds ago`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(now.since(then)))
}

/// A point in time as docker prints it in `inspect --pretty`.
pub(crate) fn moment(at: Timestamp) -> String {
    let format =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3] +0000 utc");
    date_time(at)
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| at.0.to_string())
}

/// A point in time in RFC 3339 with nine decimals, as docker's `--timestamps` prints it.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
    date_time(at)
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| at.0.to_string())
}

fn date_time(at: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok()
}

/// The first twelve characters of an id.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.split_once(':').map_or(id, |(_, digest)| digest);
    id.char_indices().nth(SHORT_ID).map_or(id, |(end, _)| &id[..end])
}

/// A text of at most this many columns; if it is cut, it ends in an ellipsis.
pub(crate) fn ellipsis(text: &str, columns: usize) -> String {
    let width = |character: char| character.width().unwrap_or(0);
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut used = 0;
    let kept = text.chars().take_while(|character| {
        used += width(*character);
        used < columns
    });
    kept.chain(['…']).collect()
}

/// `running` as `Running`.
pub(crate) fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

/// An image without its digest, if it has a tag, and without docker's default registry and folder.
pub(crate) fn image(image: &str) -> &str {
    let tagged = match image.split_once('@') {
        Some((name, _)) if name.rsplit('/').next().is_some_and(|last| last.contains(':')) => name,
        _ => image,
    };
    let familiar = tagged.strip_prefix("docker.io/").unwrap_or(tagged);
    familiar.strip_prefix("library/").unwrap_or(familiar)
}

/// Natural order: `web.2` comes before `web.10`.
pub(crate) fn natural(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left, right);
    while !left.is_empty() && !right.is_empty() {
        let order = match (digits(left), digits(right)) {
            (0, _) | (_, 0) => {
                let order = left.chars().next().cmp(&right.chars().next());
                left = without_first(left);
                right = without_first(right);
                order
            }
            (first, second) => {
                let numbers = (
                    left[..first].trim_start_matches('0'),
                    right[..second].trim_start_matches('0'),
                );
                left = &left[first..];
                right = &right[second..];
                numbers
                    .0
                    .len()
                    .cmp(&numbers.1.len())
                    .then(numbers.0.cmp(numbers.1))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len())
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn without_first(text: &str) -> &str {
    let mut characters = text.chars();
    characters.next();
    characters.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ages_are_dockers() {
        const DAY: u64 = 86_400;
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * DAY, "3 days"),
            (14 * DAY, "2 weeks"),
            (60 * DAY, "2 months"),
            (800 * DAY, "2 years"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (milliseconds, expected) in [
            (0, "0s"),
            (500, "500ms"),
            (1_500, "1.5s"),
            (60_000, "1m0s"),
            (90_050, "1m30.05s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn an_image_is_shown_without_digest_and_defaults() {
        for (given, shown) in [
            ("nginx:1.27@sha256:ab", "nginx:1.27"),
            ("nginx@sha256:ab", "nginx@sha256:ab"),
            ("docker.io/library/nginx:1", "nginx:1"),
            ("localhost:5000/a/b@sha256:ab", "localhost:5000/a/b@sha256:ab"),
            ("localhost:5000/a/b:2@sha256:ab", "localhost:5000/a/b:2"),
        ] {
            assert_eq!(image(given), shown);
        }
    }

    #[test]
    fn long_texts_end_in_an_ellipsis_within_the_columns() {
        assert_eq!(ellipsis("task: non-zero exit (1)", 30), "task: non-zero exit (1)");
        assert_eq!(ellipsis("0123456789", 5), "0123…");
        assert_eq!(ellipsis("日本語日本語", 5), "日本…");
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
    }

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = ["web.10", "web.2", "web", "api.1", "web.1", "web.02x"];
        names.sort_by(|left, right| natural(left, right));
        assert_eq!(names, ["api.1", "web", "web.1", "web.2", "web.02x", "web.10"]);
    }

    #[test]
    fn points_in_time() {
        assert_eq!(rfc3339(Timestamp(1_500)), "1970-01-01T00:00:01.500000000Z");
        assert_eq!(moment(Timestamp(0)), "1970-01-01 00:00:00.000 +0000 utc");
    }

    proptest! {
        #[test]
        fn natural_order_is_antisymmetric_and_transitive(left in "[a-c0-2]{0,6}", middle in "[a-c0-2]{0,6}", right in "[a-c0-2]{0,6}") {
            prop_assert_eq!(natural(&left, &right), natural(&right, &left).reverse());
            if natural(&left, &middle).is_le() && natural(&middle, &right).is_le() {
                prop_assert!(natural(&left, &right).is_le());
            }
        }

        #[test]
        fn an_ellipsis_never_takes_more_than_its_columns(text in "\\PC{0,20}", columns in 1_usize..12) {
            let shown = ellipsis(&text, columns);
            let width: usize = shown.chars().map(|character| character.width().unwrap_or(0)).sum();
            prop_assert!(width <= columns);
        }
    }
}
