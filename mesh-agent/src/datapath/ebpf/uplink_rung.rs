//! The rung that a node reaches, from what its uplinks' hooks allow. Pure.

use std::collections::BTreeMap;

use super::{
    super::{Mode, ReachedRung, Rung, RungState, RungStatus},
    hooks::XdpHook,
};

/// The result of trying a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It works, or has not been refused yet.
    Works,
    /// The kernel refused it, with this message.
    Refused(String),
    /// It was not tried, for this reason.
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

/// The results of trying an uplink's hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UplinkHooks {
    /// The XDP hook in use, if any.
    pub(super) mode: Mode,
    /// XDP in the driver.
    pub(super) native: Outcome,
    /// XDP on the generic hook; has a meaning only where the driver's is not in use.
    pub(super) generic: Outcome,
    /// tc by tcx links; where that does not work, clsact is used.
    pub(super) tcx: Outcome,
}

impl UplinkHooks {
    /// The result of trying an XDP hook.
    pub(super) fn xdp(&self, hook: XdpHook) -> &Outcome {
        match hook {
            XdpHook::Native => &self.native,
            XdpHook::Generic => &self.generic,
        }
    }

    pub(super) fn xdp_mut(&mut self, hook: XdpHook) -> &mut Outcome {
        match hook {
            XdpHook::Native => &mut self.native,
            XdpHook::Generic => &mut self.generic,
        }
    }

    pub(super) fn rung(&self) -> Rung {
        match (self.mode, self.tcx.works()) {
            (Mode::XdpNative, true) => Rung::XdpNativeTcx,
            (Mode::XdpNative, false) => Rung::XdpNativeClsact,
            (Mode::XdpGeneric, _) => Rung::XdpGeneric,
            (Mode::Tc | Mode::None, _) => Rung::Tc,
            (Mode::Ipvs, _) => Rung::Ipvs,
        }
    }

    /// Why it is not the fastest; empty where it is.
    pub(super) fn reason(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        for outcome in self
            .obstacles(Rung::XdpNativeTcx)
            .chain(self.obstacles(Rung::XdpGeneric))
        {
            reasons.extend(outcome.reason().filter(|reason| !reasons.contains(reason)));
        }
        reasons.join("; ")
    }

    /// What keeps the uplink from a rung that is better than its own.
    fn obstacles(&self, rung: Rung) -> impl Iterator<Item = &Outcome> {
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

/// A node reaches the rung of its slowest uplink.
pub(super) fn reached_rung(uplinks: &BTreeMap<&str, &UplinkHooks>) -> ReachedRung {
    let Some(rung) = uplinks.values().map(|uplink| uplink.rung()).max() else {
        return ReachedRung::default();
    };
    let better = Rung::ALL.into_iter().filter(|better| *better < rung);
    let passed = better.map(|better| {
        let mut reasons = Vec::new();
        let mut state = RungState::NotTried;
        for (name, uplink) in uplinks.iter().filter(|(_, uplink)| uplink.rung() > better) {
            for outcome in uplink.obstacles(better) {
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

    fn refused(reason: &str) -> Outcome {
        Outcome::Refused(reason.to_owned())
    }

    fn not_tried(reason: &str) -> Outcome {
        Outcome::NotTried(reason.to_owned())
    }

    use Outcome::Works;

    #[test]
    fn the_slowest_uplink_decides_the_nodes_rung_and_gives_the_reason() {
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
    fn a_kernel_without_tcx_leaves_the_second_rung() {
        let uplink = uplink_hooks(Mode::XdpNative, Works, Works, refused("no tcx"));
        let found = reached_rung(&BTreeMap::from([("eth0", &uplink)]));
        assert_eq!(found.rung, Some(Rung::XdpNativeClsact));
        assert_eq!(found.passed.len(), 1);
        assert_eq!(found.passed[0].reason, "eth0: no tcx");
        assert_eq!(uplink.reason(), "no tcx");
    }

    #[test]
    fn what_the_settings_rule_out_counts_as_not_tried() {
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
        assert_eq!(uplink.reason(), "XDP is off", "given once");
    }

    #[test]
    fn without_an_uplink_no_rung_is_reached() {
        assert_eq!(reached_rung(&BTreeMap::new()), ReachedRung::default());
    }
}
