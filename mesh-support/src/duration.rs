//! Durations as written in compose files: `1h30m`, `1.5s`, `200ms`. Millisecond resolution.

use std::{fmt::Write as _, time::Duration};

const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Parses a sequence of numbers with units (`h`, `m`, `s`, `ms`); `0` needs no unit.
///
/// # Errors
/// If it is not a duration. The message shows what one looks like.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refuse =
        || format!("invalid duration {text:?}: use numbers with the units h, m, s or ms, such as \"1m30s\"");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .ok_or_else(refuse)?;
        let (number, tail) = rest.split_at(digits);
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(refuse)?;
        let part = milliseconds(number, factor).ok_or_else(refuse)?;
        total = total.checked_add(part).ok_or_else(refuse)?;
        rest = &tail[unit.len()..];
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Ok(Duration::from_millis(total))
}

/// Exact decimal arithmetic: `1.5` of 1000 is 1500.
fn milliseconds(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / u128::from(scale);
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Formats a duration so that [`parse`] reads it, in the largest units: `1m30s`, `0s`, `250ms`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= factor {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}{unit}", rest / factor);
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_durations_of_compose_files() {
        for (text, expected) in [
            ("0", 0),
            ("5s", 5_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(expected)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_duration() {
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5d",
            ".s",
            "99999999999999999999s",
            "1.2.3s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
