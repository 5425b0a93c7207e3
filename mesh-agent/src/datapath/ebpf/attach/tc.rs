//! The programs for tc: attached by tcx links, or by clsact filters where the kernel refuses tcx. Part of
//! [`Attachments`].

use std::path::PathBuf;

use aya::{Ebpf, programs::SchedClassifier};
use mesh_ebpf::abi::Called;
use mesh_support::error_chain;
use tracing::warn;

use super::{Attachments, program};
use crate::{
    datapath::{
        DatapathError, TcChoice,
        ebpf::{
            clsact, failed,
            hooks::{self, TcHook, interface_name, is_link_of, remove_pin},
            uplink_rung::Outcome,
        },
    },
    model::HostInterface,
};

/// A program for tc. Each has one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TcProgram {
    /// For what arrives on an uplink with an Ethernet header.
    Uplink,
    /// For what arrives on an uplink without one.
    Layer3,
    /// For what leaves a container, at the host end of its veth.
    Container,
    /// For what local processes send into `mesh0`.
    Local,
}

impl TcProgram {
    pub(super) const ALL: [Self; 4] = [Self::Uplink, Self::Layer3, Self::Container, Self::Local];

    /// The name in the eBPF object.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uplink => "mesh_uplink",
            Self::Layer3 => "mesh_layer3",
            Self::Container => "mesh_container",
            Self::Local => "mesh_local",
        }
    }

    /// The programs that it calls, and that those call: for exceptional packets and for those of IPv6
    /// clients.
    pub(super) fn calls(self) -> &'static [Called] {
        match self {
            Self::Uplink => &[Called::ExceptionalUplink, Called::ToIpv4Uplink, Called::Uplink],
            Self::Layer3 => &[Called::ExceptionalLayer3],
            Self::Container => &[
                Called::ExceptionalContainer,
                Called::ToIpv4Container,
                Called::Container,
            ],
            Self::Local => &[Called::ExceptionalLocal, Called::ToIpv6],
        }
    }

    /// Where it is attached.
    pub(super) fn hook(self) -> TcHook {
        match self {
            Self::Uplink | Self::Layer3 | Self::Container => TcHook::Ingress,
            Self::Local => TcHook::Egress,
        }
    }

    /// The program of an uplink.
    pub(super) fn of_uplink(interface: &HostInterface) -> Self {
        match interface.mac {
            Some(_) => Self::Uplink,
            None => Self::Layer3,
        }
    }
}

impl Attachments {
    /// Attaches by tcx, or by clsact where tcx is refused. Once refused, tcx is not tried again until
    /// [`Attachments::climb`].
    pub(super) fn attach_tc(
        &mut self,
        programs: &mut Ebpf,
        which: TcProgram,
        index: u32,
    ) -> Result<(), DatapathError> {
        let (name, hook) = (which.name(), which.hook());
        let interface = interface_name(index)?;
        let doing = || format!("attach {name} to tc {} of {interface}", hook.name());
        let program: &mut SchedClassifier = program(programs, name)?;
        let pin = self.tc_pin(which, index);
        let replaced = self
            .replaced
            .iter()
            .map(|links| links.join(pin_name(which, index)));
        let replaced = replaced.into_iter().find(|pin| is_link_of(pin, index));
        if self.tcx.works() {
            match hooks::attach_tcx(program, &interface, hook, &pin, replaced.as_deref()) {
                Ok(()) => {
                    self.unclaimed.remove(&pin);
                    return Ok(());
                }
                Err(error) => {
                    let reason = format!("clsact: this kernel refuses tcx ({})", error_chain(&error));
                    let error = failed(doing(), error);
                    if self.tc == TcChoice::Tcx || error.is_missing_device() {
                        return Err(error);
                    }
                    warn!(reason, "falling back to clsact");
                    self.tcx = Outcome::Refused(reason);
                }
            }
        }
        if hooks::make_clsact(&interface) {
            clsact::remember(&self.links, index)?;
        }
        hooks::attach_clsact(program, &interface, hook).map_err(|error| failed(doing(), error))?;
        self.clsact.insert((index, which));
        Ok(())
    }

    /// Detaches a program, however it was attached.
    pub(super) fn detach_tc(&mut self, which: TcProgram, index: u32) -> Result<(), DatapathError> {
        remove_pin(&self.tc_pin(which, index))?;
        if self.clsact.remove(&(index, which)) {
            hooks::detach_clsact(which.name(), index, which.hook())?;
            clsact::release(&self.links)?;
        }
        Ok(())
    }

    pub(super) fn tc_pin(&self, which: TcProgram, index: u32) -> PathBuf {
        self.links.join(pin_name(which, index))
    }
}

fn pin_name(which: TcProgram, index: u32) -> String {
    format!("{}_{}_{index}", which.name(), which.hook().name())
}

/// Removes our filters from clsact on every interface, except those kept; returns how many were removed.
pub(in super::super) fn sweep(keep: impl Fn(u32, TcHook) -> bool) -> Result<usize, DatapathError> {
    hooks::sweep_clsact(&TcProgram::ALL.map(TcProgram::name), keep)
}
