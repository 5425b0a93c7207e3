//! Numbers with units as the docker CLI reads them: `512M` is binary, `0.5` CPUs are exact. Pure.

use std::time::Duration;

use mesh_orchestrator::spec::duration;

/// Bytes of memory: a number, decimals allowed, with an optional unit (`b`, `k`, `m`, `g`, `t`, `p`, each
/// also as `kb` or `kib`, in any case). Units are powers of 1024.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("{text:?} is no size: use a number with an optional unit, such as 512M or 1.5GiB");
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = text[number.len()..].to_ascii_lowercase();
    let exponent = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 0,
        "k" | "ki" => 1,
        "m" | "mi" => 2,
        "g" | "gi" => 3,
        "t" | "ti" => 4,
        "p" | "pi" => 5,
        _ => return Err(refuse()),
    };
    scaled(number.strip_suffix(' ').unwrap_or(number), 1 << (10 * exponent)).ok_or_else(refuse)
}

/// CPUs as billionths of one; no more than nine decimals.
pub(crate) fn nano_cpus(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("{text:?} is no number of CPUs: use a decimal number such as 0.5, nine decimals at most");
    let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    if decimals > 9 {
        return Err(refuse());
    }
    scaled(text, 1_000_000_000).ok_or_else(refuse)
}

/// `1m30s`, `10s`, `200ms`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    duration::parse(text)
}

/// A file's permission bits: octal as a shell writes them, `0444` or `444`, also `0o444`.
pub(crate) fn file_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .map_err(|_| format!("{text:?} is no file mode: use octal digits such as 0444"))
}

/// The largest power of 1024 in which it is one or more, four digits: `20MiB`, `1.5GiB`.
pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut index = 0;
    let mut unit = 1_u64;
    while index + 1 < UNITS.len() && bytes / unit >= 1024 {
        unit <<= 10;
        index += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let number = bytes as f64 / unit as f64;
    let decimals = match number {
        number if number >= 1000.0 => 0,
        number if number >= 100.0 => 1,
        number if number >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{number:.decimals$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", UNITS[index])
}

/// Billionths of a CPU as CPUs: `0.5`, `2`.
pub(crate) fn show_cpus(nano_cpus: u64) -> String {
    let text = format!("{}.{:09}", nano_cpus / 1_000_000_000, nano_cpus % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Exact decimal arithmetic; what is less than one is cut off.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) || decimals.len() > 18
    {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = if decimals.is_empty() {
        0
    } else {
        let scale = 10_u128.pow(u32::try_from(decimals.len()).ok()?);
        u64::try_from(decimals.parse::<u128>().ok()? * u128::from(factor) / scale).ok()?
    };
    whole.checked_mul(factor)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_every_spelling() {
        for (text, expected) in [
            ("0", 0),
            ("42", 42),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("512mb", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5g", 3 << 29),
            ("2 k", 2048),
            (".5k", 512),
            ("1t", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "1x",
            "1mm",
            "1.2.3",
            "99999999999999999999",
            "9999999p",
            "0x10",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_exact_to_a_billionth() {
        assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        assert_eq!(nano_cpus(".000000001"), Ok(1));
        for text in ["", ".", "-1", "1/3", "0.0000000001", "half"] {
            assert!(nano_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn file_modes_are_octal() {
        assert_eq!(file_mode("0444"), Ok(0o444));
        assert_eq!(file_mode("644"), Ok(0o644));
        assert_eq!(file_mode("0o400"), Ok(0o400));
        assert!(file_mode("rw").is_err());
        assert!(file_mode("9").is_err());
    }

    #[test]
    fn sizes_are_shown_as_docker_shows_them() {
        assert_eq!(show_bytes(0), "0B");
        assert_eq!(show_bytes(20 << 20), "20MiB");
        assert_eq!(show_bytes(3 << 29), "1.5GiB");
        assert_eq!(show_bytes(1_234_567_890), "1.15GiB");
    }

    proptest! {
        #[test]
        fn cpus_read_back_as_shown(nano in 0_u64..1 << 60) {
            prop_assert_eq!(nano_cpus(&show_cpus(nano)), Ok(nano));
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,12}") {
            let _ = (bytes(&text), nano_cpus(&text), time(&text), file_mode(&text));
        }
    }
}
