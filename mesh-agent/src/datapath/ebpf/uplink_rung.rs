//! From what each uplink's hooks said to the rung the node stands on: pure functions.

use std::collections::BTreeMap;

use super::super::{Mode, ReachedRung, Rung, RungState, RungStatus};

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It works, or nothing has refused it yet.
    Works,
    /// The kernel refused it, in these words.
    Refused(String),
    /// It was not tried, because of this.
    NotTried(String),
}

impl Outcome {
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Works => None,
            Self::Refused(reason) | Self::NotTried(reason) => Some(reason),
        }
    }

    pub(super) fn works(&self) -> bool {
        *self == Self::Works
    }
}

/// What became of the hooks of one uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UplinkHooks {
    /// The XDP hook in use, if any.
    pub(super) mode: Mode,
    /// XDP in the driver.
    pub(super) native: Outcome,
    /// XDP on the generic hook; meaningful only where the driver's is not in use.
    pub(super) generic: Outcome,
    /// tc by tcx links; clsact is used where it does not work.
    pub(super) tcx: Outcome,
}

impl UplinkHooks {
    pub(super) fn rung(&self) -> Rung {
        match (self.mode, self.tcx.works()) {
            (Mode::XdpNative, true) => Rung::XdpNativeTcx,
            (Mode::XdpNative, false) => Rung::XdpNativeClsact,
            (Mode::XdpGeneric, _) => Rung::XdpGeneric,
            (Mode::Tc, _) => Rung::Tc,
            (Mode::Ipvs, _) => Rung::Ipvs,
        }
    }

    /// Why it is not the fastest there is; empty where it is.
    pub(super) fn reason(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        for outcome in self
            .in_the_way(Rung::XdpNativeTcx)
            .chain(self.in_the_way(Rung::XdpGeneric))
        {
            reasons.extend(outcome.reason().filter(|reason| !reasons.contains(reason)));
        }
        reasons.join("; ")
    }

    /// What keeps the uplink from a rung better than its own.
    fn in_the_way(&self, rung: Rung) -> impl Iterator<Item = &Outcome> {
        let native = [&self.native, &self.tcx];
        let hooks = match rung {
            Rung::XdpNativeTcx => &native[..],
            Rung::XdpNativeClsact => &native[..1],
            Rung::XdpGeneric if self.mode == Mode::Tc => &[&self.generic][..],
            Rung::XdpGeneric | Rung::Tc | Rung::Ipvs => &[],
        };
        hooks
            .iter()
            .copied()
            .filter(|outcome| !outcome.works())
            .collect::<Vec<_>>()
            .into_iter()
    }
}

/// The node stands where its slowest uplink does.
pub(super) fn reached_rung(uplinks: &BTreeMap<&str, &UplinkHooks>) -> ReachedRung {
    let Some(rung) = uplinks.values().map(|uplink| uplink.rung()).max() else {
        return ReachedRung::default();
    };
    let better = Rung::ALL.into_iter().filter(|better| *better < rung);
    let passed = better.map(|better| {
        let mut reasons = Vec::new();
        let mut state = RungState::NotTried;
        for (name, uplink) in uplinks.iter().filter(|(_, uplink)| uplink.rung() > better) {
            for outcome in uplink.in_the_way(better) {
                if matches!(outcome, Outcome::Refused(_)) {
                    state = RungState::Refused;
                }
                reasons.extend(outcome.reason().map(|reason| format!("{name}: {reason}")));
            }
        }
        RungStatus {
            rung: better,
            state,
            reason: reasons.join("; "),
        }
    });
    ReachedRung {
        rung: Some(rung),
        passed: passed.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink_hooks(mode: Mode, native: Outcome, generic: Outcome, tcx: Outcome) -> UplinkHooks {
        UplinkHooks {
            mode,
            native,
            generic,
            tcx,
        }
    }

    fn refused(words: &str) -> Outcome {
        Outcome::Refused(words.to_owned())
    }

    fn not_tried(words: &str) -> Outcome {
        Outcome::NotTried(words.to_owned())
    }

    use Outcome::Works;

    #[test]
    fn the_slowest_uplink_is_the_nodes_rung_and_says_why() {
        let fast = uplink_hooks(Mode::XdpNative, Works, Works, Works);
        let slow = uplink_hooks(Mode::XdpGeneric, refused("native: busy"), Works, Works);
        let found = reached_rung(&BTreeMap::from([("eth0", &fast), ("eth1", &slow)]));
        assert_eq!(found.rung, Some(Rung::XdpGeneric));
        let status = |rung| RungStatus {
            rung,
            state: RungState::Refused,
            reason: "eth1: native: busy".to_owned(),
        };
        assert_eq!(
            found.passed,
            [status(Rung::XdpNativeTcx), status(Rung::XdpNativeClsact)]
        );
    }

    #[test]
    fn a_kernel_without_tcx_puts_the_node_on_the_second_rung() {
        let uplink = uplink_hooks(Mode::XdpNative, Works, Works, refused("no tcx"));
        let found = reached_rung(&BTreeMap::from([("eth0", &uplink)]));
        assert_eq!(found.rung, Some(Rung::XdpNativeClsact));
        assert_eq!(found.passed.len(), 1);
        assert_eq!(found.passed[0].reason, "eth0: no tcx");
        assert_eq!(uplink.reason(), "no tcx");
    }

    #[test]
    fn what_the_settings_rule_out_was_not_tried() {
        let off = || not_tried("XDP is off");
        let uplink = uplink_hooks(Mode::Tc, off(), off(), Works);
        let found = reached_rung(&BTreeMap::from([("eth0", &uplink)]));
        assert_eq!(found.rung, Some(Rung::Tc));
        assert!(
            found
                .passed
                .iter()
                .all(|passed| passed.state == RungState::NotTried)
        );
        assert_eq!(uplink.reason(), "XDP is off", "said once");
    }

    #[test]
    fn without_an_uplink_there_is_no_rung_yet() {
        assert_eq!(reached_rung(&BTreeMap::new()), ReachedRung::default());
    }
}
