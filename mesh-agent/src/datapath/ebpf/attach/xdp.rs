//! The XDP program on uplinks: in the driver, on the generic hook, or not at all. Part of [`Attachments`].

use std::path::PathBuf;

use aya::{Ebpf, programs::Xdp};
use mesh_support::error_chain;
use tracing::warn;

use super::{Attachments, Uplink, program};
use crate::{
    datapath::{
        DatapathError, Mode, XdpChoice,
        ebpf::{
            driver::{driver_name, takes_vlan_tags_off},
            hooks::{self, XdpHook, is_link_of, remove_pin},
            uplink_rung::{Outcome, UplinkHooks},
        },
    },
    model::HostInterface,
};

const XDP_PROGRAM: &str = "mesh_xdp";

impl Attachments {
    /// Attaches XDP to the fastest hook that works; returns the result for each. The caller fills in tcx.
    pub(super) fn attach_xdp(
        &mut self,
        programs: &mut Ebpf,
        name: &str,
        interface: &HostInterface,
    ) -> Result<UplinkHooks, DatapathError> {
        let index = interface.index;
        let mut found = match interface.mac {
            Some(_) if interface.has_vlans && takes_vlan_tags_off(name) => off(
                "XDP is off: VLAN devices are on it, and the card takes the tags off before XDP could tell whose the \
                 frames are (`ethtool -K … rxvlan off` before the agent starts leaves them on)",
            ),
            Some(_) => untried(self.xdp, name),
            None => off("XDP is off: a layer 3 device has no Ethernet frames"),
        };
        for hook in XdpHook::ALL {
            if !found.xdp(hook).works() {
                continue;
            }
            let stale = self.xdp_pin(index, hook.other());
            if self.unclaimed.remove(&stale) {
                remove_pin(&stale)?;
            }
            let pin = self.xdp_pin(index, hook);
            for links in &self.replaced {
                remove_pin(&links.join(pin_name(index, hook.other())))?;
                // An interface has one XDP program: it is replaced in the link that there is.
                let earlier = links.join(pin_name(index, hook));
                if is_link_of(&earlier, index) && !pin.exists() {
                    hooks::share_link(&earlier, &pin)?;
                }
            }
            let program: &mut Xdp = program(programs, XDP_PROGRAM)?;
            match hooks::attach_xdp(program, index, hook, &pin) {
                Ok(()) => {
                    self.unclaimed.remove(&pin);
                    found.mode = match hook {
                        XdpHook::Native => Mode::XdpNative,
                        XdpHook::Generic => Mode::XdpGeneric,
                    };
                    return Ok(found);
                }
                Err(error) => {
                    let reason = format!("{} XDP refused: {}", hook.name(), error_chain(&error));
                    *found.xdp_mut(hook) = Outcome::Refused(reason);
                }
            }
        }
        let reason = found.reason();
        warn!(interface = name, reason, "this uplink uses tc alone");
        Ok(found)
    }

    /// Uses XDP in the driver on all uplinks or on none. What XDP forwards can leave by any of them, and the
    /// kernel drops what XDP sends to a bridge, a VLAN or a driver without XDP, and counts it nowhere. tc
    /// sends by every interface.
    pub(super) fn level_xdp(&mut self, programs: &mut Ebpf) -> Result<(), DatapathError> {
        let native = |uplink: &Uplink| uplink.hooks.mode == Mode::XdpNative || uplink.held_back;
        // What leaves by a layer 3 device, XDP leaves to tc.
        let sends = |uplink: &Uplink| uplink.interface.mac.is_none() || native(uplink);
        let mut without = self.uplinks.iter().filter(|(_, uplink)| !sends(uplink));
        let obstacle = without.next().map(|(name, _)| name.clone());
        for name in self.uplinks.keys().cloned().collect::<Vec<_>>() {
            let Some(uplink) = self.uplinks.get(&name) else {
                continue;
            };
            let (interface, mode, held_back) = (uplink.interface, uplink.hooks.mode, uplink.held_back);
            let mut hooks = uplink.hooks.clone();
            match &obstacle {
                Some(obstacle) if mode == Mode::XdpNative => {
                    remove_pin(&self.xdp_pin(interface.index, XdpHook::Native))?;
                    hooks.mode = Mode::Tc;
                    hooks.native = Outcome::NotTried(format!(
                        "XDP is off, because {obstacle} has no native XDP and could not send what XDP forwards"
                    ));
                }
                None if held_back => {
                    hooks = UplinkHooks {
                        tcx: hooks.tcx,
                        ..self.attach_xdp(programs, &name, &interface)?
                    };
                }
                Some(_) | None => continue,
            }
            if let Some(uplink) = self.uplinks.get_mut(&name) {
                uplink.hooks = hooks;
                uplink.held_back = obstacle.is_some();
            }
        }
        Ok(())
    }

    pub(super) fn xdp_pin(&self, index: u32, hook: XdpHook) -> PathBuf {
        self.links.join(pin_name(index, hook))
    }
}

fn pin_name(index: u32, hook: XdpHook) -> String {
    format!("{XDP_PROGRAM}_{}_{index}", hook.name())
}

/// Nothing is tried, for this reason, and no setting is to blame.
fn off(reason: &str) -> UplinkHooks {
    UplinkHooks {
        mode: Mode::Tc,
        native: Outcome::NotTried(reason.to_owned()),
        generic: Outcome::NotTried(reason.to_owned()),
        tcx: Outcome::Works,
    }
}

/// What the settings leave to be tried on an uplink, before anything is attached.
fn untried(choice: XdpChoice, interface: &str) -> UplinkHooks {
    let not_tried = |reason: &str| Outcome::NotTried(reason.to_owned());
    let (native, generic) = match choice {
        XdpChoice::Off => {
            let off = not_tried("XDP is off: --xdp off");
            (off.clone(), off)
        }
        XdpChoice::Auto if driver_name(interface).is_some_and(|driver| driver == "veth") => {
            let veth = not_tried(
                "XDP is off: packets from a veth have unfinished checksums, and XDP would forward them so \
                 (--xdp native works if the veth's peer has `ethtool -K … tx off`)",
            );
            (veth.clone(), veth)
        }
        XdpChoice::Auto => (
            Outcome::Works,
            not_tried("generic XDP is used only with --xdp generic"),
        ),
        XdpChoice::Native => (
            Outcome::Works,
            not_tried("generic XDP is ruled out by --xdp native"),
        ),
        XdpChoice::Generic => (
            not_tried("native XDP is ruled out by --xdp generic"),
            Outcome::Works,
        ),
    };
    UplinkHooks {
        mode: Mode::Tc,
        native,
        generic,
        tcx: Outcome::Works,
    }
}
