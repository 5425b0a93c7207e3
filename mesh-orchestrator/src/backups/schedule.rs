//! When a backup is due, and which old ones expire. Pure: names and times in, decisions out.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

use crate::objects::Timestamp;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// How a file is named: `hourly-20261121T190000.000Z.mesh-backup`.
const SUFFIX: &str = ".mesh-backup";
const FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");

/// The origin of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupKind {
    /// Scheduled; removed when it expires.
    Hourly,
    /// Made by a user, who also removes it.
    Manual,
}

/// A backup's file name, with its origin and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupName {
    /// Its origin.
    pub kind: BackupKind,
    /// When it was made.
    pub at: Timestamp,
}

/// A file name that is not a backup's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a backup; one looks like hourly-20261121T190000.000Z{SUFFIX}")]
pub struct InvalidName(String);

impl fmt::Display for BackupName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BackupKind::Hourly => "hourly",
            BackupKind::Manual => "manual",
        };
        let nanoseconds = i128::from(self.at.0) * 1_000_000;
        let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
            .map_err(|_| fmt::Error)?
            .format(FORMAT)
            .map_err(|_| fmt::Error)?;
        write!(formatter, "{kind}-{time}{SUFFIX}")
    }
}

impl FromStr for BackupName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let parsed = text.strip_suffix(SUFFIX).and_then(|text| {
            let (kind, time) = text.split_once('-')?;
            let kind = match kind {
                "hourly" => BackupKind::Hourly,
                "manual" => BackupKind::Manual,
                _ => return None,
            };
            let time = time::PrimitiveDateTime::parse(time, FORMAT).ok()?.assume_utc();
            let milliseconds = u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()?;
            Some(Self {
                kind,
                at: Timestamp(milliseconds),
            })
        });
        parsed.ok_or_else(|| InvalidName(text.to_owned()))
    }
}

/// How many scheduled backups are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The number of hours of which the newest backup is kept.
    pub hours: usize,
    /// The number of days of which the newest backup is kept.
    pub days: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { hours: 24, days: 7 }
    }
}

/// Whether a scheduled backup is due now.
#[must_use]
pub fn is_due(now: Timestamp, existing: &[BackupName]) -> bool {
    // A backup from the future, made when the clock was ahead, must not delay the next one.
    let newest = existing
        .iter()
        .filter(|name| name.kind == BackupKind::Hourly && name.at <= now)
        .map(|name| name.at)
        .max();
    newest.is_none_or(|newest| now.since(newest) >= Duration::from_millis(HOUR))
}

/// The scheduled backups that expire. Only hours and days with a backup count, so that a machine that was off
/// for long keeps its last ones.
#[must_use]
pub fn expired(existing: &[BackupName], keep: Keep) -> Vec<BackupName> {
    let mut scheduled: Vec<BackupName> = existing
        .iter()
        .copied()
        .filter(|name| name.kind == BackupKind::Hourly)
        .collect();
    scheduled.sort_by_key(|name| std::cmp::Reverse(name.at));
    let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
    scheduled
        .into_iter()
        .filter(|name| {
            let for_hour = hours.len() < keep.hours && hours.insert(name.at.0 / HOUR);
            let for_day = days.len() < keep.days && days.insert(name.at.0 / DAY);
            !for_hour && !for_day
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hourly(at: u64) -> BackupName {
        BackupName {
            kind: BackupKind::Hourly,
            at: Timestamp(at),
        }
    }

    #[test]
    fn a_name_has_origin_and_time() {
        let name = hourly(1_795_287_600_123);
        assert_eq!(name.to_string(), "hourly-20261121T190000.123Z.mesh-backup");
        assert_eq!(name.to_string().parse(), Ok(name));
        for wrong in [
            "",
            "hourly-",
            "daily-20261121T190000.123Z.mesh-backup",
            ".store-x",
            "hourly-20261121T190000.123Z",
        ] {
            assert!(wrong.parse::<BackupName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn of_a_month_of_hourly_backups_a_day_and_a_week_are_kept() {
        let mut existing: Vec<BackupName> = (0..24 * 30).map(|hour| hourly(hour * HOUR + 5)).collect();
        let gone = expired(&existing, Keep::default());
        existing.retain(|name| !gone.contains(name));
        // All of the last day, and the last of each of the six days before.
        assert_eq!(existing.len(), 24 + 6);
        assert_eq!(existing.last(), Some(&hourly((24 * 30 - 1) * HOUR + 5)));
    }

    #[test]
    fn a_backup_is_due_an_hour_after_the_last() {
        assert!(is_due(Timestamp(5), &[]));
        assert!(!is_due(Timestamp(HOUR), &[hourly(5)]));
        assert!(is_due(Timestamp(HOUR + 5), &[hourly(5)]));
        assert!(
            is_due(Timestamp(5), &[hourly(10 * DAY)]),
            "made by a clock that was ahead"
        );
        let manual = BackupName {
            kind: BackupKind::Manual,
            at: Timestamp(5),
        };
        assert!(is_due(Timestamp(6), &[manual]));
    }

    proptest! {
        #[test]
        fn names_round_trip(at in 0..4_000_000_000_000_u64, manual: bool) {
            let kind = if manual { BackupKind::Manual } else { BackupKind::Hourly };
            let name = BackupName { kind, at: Timestamp(at) };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn the_newest_and_manual_backups_are_kept(times in prop::collection::vec(0..40 * DAY, 0..200), manual in prop::collection::vec(0..40 * DAY, 0..5)) {
            let mut existing: Vec<_> = times.iter().map(|at| hourly(*at)).collect();
            existing.extend(manual.iter().map(|at| BackupName { kind: BackupKind::Manual, at: Timestamp(*at) }));
            let gone = expired(&existing, Keep::default());
            prop_assert!(gone.iter().all(|name| name.kind == BackupKind::Hourly));
            let newest = times.iter().max().copied();
            let kept: Vec<_> = existing.iter().copied().filter(|name| !gone.contains(name)).collect();
            if let Some(newest) = newest {
                prop_assert!(kept.contains(&hourly(newest)));
            }
            let scheduled = kept.iter().filter(|name| name.kind == BackupKind::Hourly).map(|name| name.at).collect::<BTreeSet<_>>();
            prop_assert!(scheduled.len() <= 24 + 7);
            // Doing it again changes nothing.
            prop_assert!(expired(&kept, Keep::default()).is_empty());
        }
    }
}
