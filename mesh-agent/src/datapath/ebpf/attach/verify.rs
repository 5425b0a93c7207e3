//! Finds programs that something else has detached (`tc qdisc del`, `bpftool link detach`), and attaches them
//! again. Part of [`Attachments`].

use aya::Ebpf;
use tracing::warn;

use super::{Attachments, TcProgram, Uplink};
use crate::datapath::{
    DatapathError, Mode,
    ebpf::{
        clsact,
        hooks::{XdpHook, interface_name, is_link_of},
        uplink_rung::UplinkHooks,
    },
};

/// How many containers' interfaces are verified at a time: nodes may have thousands.
const CONTAINERS_AT_A_TIME: usize = 32;

impl Attachments {
    /// Verifies the hooks of the uplinks and of `mesh0`, and of some containers in turn.
    pub(in super::super) fn verify(&mut self, programs: &mut Ebpf) -> Result<(), DatapathError> {
        let mut hooks: Vec<_> = self.uplinks.values().map(Uplink::tc).collect();
        hooks.extend(self.mesh0.map(|index| (TcProgram::Local, index)));
        let after = self.verified_containers;
        let next = self.containers.range(after.map_or(0, |index| index + 1)..);
        let next: Vec<u32> = next.take(CONTAINERS_AT_A_TIME).copied().collect();
        self.verified_containers = next.last().copied();
        hooks.extend(next.into_iter().map(|index| (TcProgram::Container, index)));
        for (program, index) in hooks {
            // An interface that is gone is no longer wanted soon.
            let Ok(interface) = interface_name(index) else {
                continue;
            };
            if self.is_attached(program, index) {
                continue;
            }
            warn!(
                interface,
                program = program.name(),
                "something else has detached a program from tc; attaching it again"
            );
            self.attach_tc(programs, program, index)?;
        }
        self.verify_xdp(programs)
    }

    fn is_attached(&self, program: TcProgram, index: u32) -> bool {
        if self.clsact.contains(&(index, program)) {
            return clsact::has_filters(index, program.hook());
        }
        is_link_of(&self.tc_pin(program, index), index)
    }

    fn verify_xdp(&mut self, programs: &mut Ebpf) -> Result<(), DatapathError> {
        for name in self.uplinks.keys().cloned().collect::<Vec<_>>() {
            let Some(uplink) = self.uplinks.get(&name) else {
                continue;
            };
            let (interface, tcx) = (uplink.interface, uplink.hooks.tcx.clone());
            let index = interface.index;
            let hook = match uplink.hooks.mode {
                Mode::XdpNative => XdpHook::Native,
                Mode::XdpGeneric => XdpHook::Generic,
                Mode::Tc | Mode::Ipvs | Mode::None => continue,
            };
            if is_link_of(&self.xdp_pin(index, hook), index) || interface_name(index).is_err() {
                continue;
            }
            warn!(
                interface = name,
                "something else has detached XDP; attaching it again"
            );
            let hooks = UplinkHooks {
                tcx,
                ..self.attach_xdp(programs, &name, &interface)?
            };
            if let Some(uplink) = self.uplinks.get_mut(&name) {
                uplink.hooks = hooks;
            }
        }
        self.level_xdp(programs)
    }
}
