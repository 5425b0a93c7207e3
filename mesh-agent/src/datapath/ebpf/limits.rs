//! What the limits of new connections have done in the last minute: from the programs' totals, which are read
//! once a second. Pure.

use std::collections::{BTreeMap, VecDeque};

use mesh_ebpf::abi::Openings;

use crate::{
    datapath::limited::{Dropped, Limited, LimitedServices},
    model::ServiceKey,
};

/// For how many seconds drops count as of late.
const MINUTE: u32 = 60;
/// Seconds between two totals that are kept.
const STEP: u32 = 5;

/// The totals of the last minute, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct LimitHistory {
    services: BTreeMap<ServiceKey, Recent>,
    limited: LimitedServices,
}

/// A service's totals at moments of the last minute, the oldest first.
type Recent = VecDeque<(u32, Totals)>;

/// First packets dropped past a service's limit, and past the limit of one client.
type Totals = [u64; 2];

impl LimitHistory {
    /// Takes over what the services' entries hold in the second `now` and in the span `span`.
    pub(super) fn note(&mut self, now: u32, span: u64, openings: &BTreeMap<ServiceKey, Openings>) {
        self.services.retain(|key, _| openings.contains_key(key));
        self.limited.clear();
        for (key, openings) in openings {
            let totals = [openings.past_max_new, openings.past_max_new_per_source];
            let recent = self.services.entry(*key).or_default();
            let limited = Limited {
                is_flooded: is_flooded(openings, span),
                ..dropped(recent, now, totals)
            };
            if limited != Limited::default() {
                self.limited.insert(*key, limited);
            }
        }
    }

    /// What they did, as of the last reading.
    pub(super) fn limited(&self) -> &LimitedServices {
        &self.limited
    }
}

/// Whether there were more new flows than the flood limit in this span or the one before.
fn is_flooded(openings: &Openings, span: u64) -> bool {
    openings.flooded != 0 && span.saturating_sub(openings.flooded) <= 1
}

/// What was dropped, by the totals of now and of a minute ago; keeps those of now.
fn dropped(recent: &mut Recent, now: u32, totals: Totals) -> Limited {
    let is_cleared = recent
        .back()
        .is_some_and(|(_, last)| totals.iter().zip(last).any(|(total, last)| total < last));
    if is_cleared {
        recent.clear();
    }
    // One that is as old as that, or older, is where the minute begins.
    while recent
        .get(1)
        .is_some_and(|(at, _)| now.saturating_sub(*at) >= MINUTE)
    {
        recent.pop_front();
    }
    if recent
        .back()
        .is_none_or(|(at, _)| now.saturating_sub(*at) >= STEP)
    {
        recent.push_back((now, totals));
    }
    let (_, before) = recent.front().copied().unwrap_or((now, totals));
    let of = |index: usize| Dropped {
        last_minute: totals[index].saturating_sub(before[index]),
        total: totals[index],
    };
    Limited {
        is_flooded: false,
        max_new: of(0),
        max_new_per_source: of(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    const WEB: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    fn after(history: &mut LimitHistory, now: u32, totals: Totals) -> Limited {
        let openings = Openings {
            past_max_new: totals[0],
            past_max_new_per_source: totals[1],
            ..Openings::default()
        };
        history.note(now, 0, &BTreeMap::from([(WEB, openings)]));
        history.limited().get(&WEB).copied().unwrap_or_default()
    }

    #[test]
    fn drops_are_of_the_last_minute_until_that_has_passed() {
        let mut history = LimitHistory::default();
        // What an earlier agent has seen is no news.
        let first = after(&mut history, 100, [7, 0]);
        assert_eq!(
            (first.max_new.last_minute, first.max_new.total),
            (0, 7),
            "{first:?}"
        );
        for now in 101..=200 {
            let limited = after(&mut history, now, [if now < 110 { 7 } else { 10 }, 2]);
            let expected = if (110..170).contains(&now) { 3 } else { 0 };
            // Totals are kept every five seconds.
            if !(170..175).contains(&now) {
                assert_eq!(limited.max_new.last_minute, expected, "{now}");
            }
            assert_eq!(limited.max_new_per_source.total, 2);
            assert!(history.services[&WEB].len() <= 14);
        }
    }

    #[test]
    fn drops_that_go_on_are_those_of_about_a_minute() {
        let mut history = LimitHistory::default();
        for second in 0..1000 {
            let limited = after(&mut history, 1 + second, [u64::from(second) * 3, 0]);
            let minute = limited.max_new.last_minute / 3;
            assert!(
                minute == u64::from(second) || (60..=65).contains(&minute),
                "{second}: {minute}"
            );
        }
    }

    #[test]
    fn a_service_that_is_published_anew_begins_at_nothing() {
        let mut history = LimitHistory::default();
        after(&mut history, 1, [0, 0]);
        assert_eq!(after(&mut history, 9, [50, 0]).max_new.last_minute, 50);
        assert_eq!(after(&mut history, 10, [0, 0]), Limited::default());
        assert_eq!(after(&mut history, 11, [4, 0]).max_new.last_minute, 4);
    }

    #[test]
    fn a_flood_is_over_a_span_after_the_last_one_with_it() {
        let mut history = LimitHistory::default();
        let flooded = Openings {
            flooded: 1000,
            ..Openings::default()
        };
        for (span, expected) in [(1000, true), (1001, true), (1002, false)] {
            history.note(1, span, &BTreeMap::from([(WEB, flooded)]));
            assert_eq!(history.limited().contains_key(&WEB), expected, "{span}");
        }
        history.note(1, 0, &BTreeMap::from([(WEB, Openings::default())]));
        assert_eq!(*history.limited(), LimitedServices::new());
    }
}
