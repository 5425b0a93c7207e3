//! The kernel's hooks one by one: attaching a program to tcx, clsact or XDP and detaching it, pins included.
//! Keeps no state (`attach` does).

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    xdp::XdpLink,
};
use mesh_support::bpf;
use nix::net::if_::if_nameindex;

use super::{super::DatapathError, failed};
use crate::host_facts;

/// Priority and handle of our clsact filters: fixed, so that an agent finds those of an earlier one.
const CLSACT_PRIORITY: u16 = 0x4d53;
const CLSACT_HANDLE: u16 = 1;

/// One of an interface's hooks for tc programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TcHook {
    /// For packets that come in.
    Ingress,
    /// For packets that go out.
    Egress,
}

impl TcHook {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The name in pins and messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl From<TcHook> for TcAttachType {
    fn from(hook: TcHook) -> Self {
        match hook {
            TcHook::Ingress => Self::Ingress,
            TcHook::Egress => Self::Egress,
        }
    }
}

/// One of an interface's hooks for XDP programs, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XdpHook {
    /// In the driver.
    Native,
    /// In the network stack, for any driver.
    Generic,
}

impl XdpHook {
    pub(super) const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name in pins and messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl From<XdpHook> for XdpMode {
    fn from(hook: XdpHook) -> Self {
        match hook {
            XdpHook::Native => Self::Driver,
            XdpHook::Generic => Self::Skb,
        }
    }
}

/// Removes all pins of a version; the kernel frees what nothing else holds.
pub(super) fn remove_pins(pins: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_dir_all(pins) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove the pins in {}", pins.display()), error)),
    }
}

/// Removes the pins of all versions.
pub(super) fn remove_all_pins(pins: &Path) -> Result<(), DatapathError> {
    for version in versions(pins) {
        remove_pins(&version)?;
    }
    // The directory itself goes too if nothing else is in it.
    let _ = std::fs::remove_dir(pins);
    Ok(())
}

/// The folders of all versions' pins.
pub(super) fn versions(pins: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(pins) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Puts the program into the pinned link if that is still attached, else makes and pins a new link. That one
/// sees packets before the link that is to be replaced, if any.
pub(super) fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcHook,
    pin: &Path,
    replaced: Option<&Path>,
) -> Result<(), ProgramError> {
    let adopted = PinnedLink::from_pin(pin)
        .ok()
        .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
        .and_then(|link| program.attach_to_link(link).ok());
    if let Some(id) = adopted {
        // The pin keeps the link, so our file descriptor of it may be closed.
        return program.take_link(id).map(drop);
    }
    let replaced = replaced
        .and_then(|pin| PinnedLink::from_pin(pin).ok())
        .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok());
    let order = match &replaced {
        Some(link) => {
            LinkOrder::before_link(link).map_err(|error| ProgramError::IOError(io::Error::other(error)))?
        }
        None => LinkOrder::default(),
    };
    let id = program.attach_with_options(interface, hook.into(), TcAttachOptions::TcxOrder(order))?;
    // The order names the link by its descriptor.
    drop(replaced);
    pin_link(FdLink::try_from(program.take_link(id)?), pin)
}

/// The same for XDP.
pub(super) fn attach_xdp(
    program: &mut Xdp,
    index: u32,
    hook: XdpHook,
    pin: &Path,
) -> Result<(), ProgramError> {
    let adopted = PinnedLink::from_pin(pin)
        .ok()
        .and_then(|pinned| XdpLink::try_from(FdLink::from(pinned)).ok())
        .and_then(|link| program.attach_to_link(link).ok());
    if let Some(id) = adopted {
        return program.take_link(id).map(drop);
    }
    let id = program.attach_to_if_index(index, hook.into())?;
    pin_link(FdLink::try_from(program.take_link(id)?), pin)
}

/// Pins a pinned link at another path as well.
pub(super) fn share_link(from: &Path, to: &Path) -> Result<(), DatapathError> {
    PinnedLink::from_pin(from)
        .map_err(|error| failed(format!("open the pinned link {}", from.display()), error))
        .and_then(|pinned| {
            let pinned = FdLink::from(pinned).pin(to);
            pinned.map_err(|error| failed(format!("pin {}", to.display()), error))
        })
        .map(drop)
}

fn pin_link(link: Result<FdLink, LinkError>, pin: &Path) -> Result<(), ProgramError> {
    let link = link.map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    // There may be a pin whose link is no longer attached.
    match std::fs::remove_file(pin) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ProgramError::IOError(error)),
    }
    link.pin(pin)
        .map(drop)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

/// Makes the queueing discipline that filters are attached to; false where there already is one, which
/// serves as well.
pub(super) fn make_clsact(interface: &str) -> bool {
    tc::qdisc_add_clsact(interface).is_ok()
}

/// Puts the program into our filter, which stays when no process holds it.
pub(super) fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcHook,
) -> Result<(), ProgramError> {
    let handle = TcHandle::new(0, CLSACT_HANDLE);
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle,
        classid: None,
    };
    let id = match program.attach_with_options(interface, hook.into(), TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(_) => {
            // An earlier agent left its filter: replace the program in it.
            let link = SchedClassifierLink::attached(interface, hook.into(), CLSACT_PRIORITY, handle, None)
                .map_err(ProgramError::IOError)?;
            program.attach_to_link(link)?
        }
    };
    // Dropping the link would detach the filter; forgetting it leaves the filter in the kernel.
    program.take_link(id).map(std::mem::forget)
}

/// Removes a program's filter; nothing to do where the filter, or the interface, is gone.
pub(super) fn detach_clsact(program: &str, index: u32, hook: TcHook) -> Result<(), DatapathError> {
    // An interface that is gone took its filters with it.
    let Ok(interface) = interface_name(index) else {
        return Ok(());
    };
    match tc::qdisc_detach_program(&interface, hook.into(), program) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(
            format!("detach {program} from tc {} of {interface}", hook.name()),
            error,
        )),
    }
}

/// Removes every filter of the given programs, on both hooks of every interface, except those kept. Returns
/// how many filters were removed.
pub(super) fn sweep_clsact(
    programs: &[&str],
    keep: impl Fn(u32, TcHook) -> bool,
) -> Result<usize, DatapathError> {
    let interfaces =
        if_nameindex().map_err(|error| failed("list the interfaces to look for tc filters", error))?;
    let mut removed = 0;
    for interface in &interfaces {
        for hook in TcHook::ALL {
            if keep(interface.index(), hook) {
                continue;
            }
            for program in programs {
                let name = interface.name().to_string_lossy();
                if tc::qdisc_detach_program(&name, hook.into(), program).is_ok() {
                    removed += 1;
                }
            }
        }
    }
    Ok(removed)
}

/// The name of an interface of this network namespace.
pub(super) fn interface_name(index: u32) -> Result<String, DatapathError> {
    host_facts::interface_name(index)
        .map_err(|error| failed(format!("find the interface with index {index}"), error))
}

/// Removes a pin, if it is there.
pub(super) fn remove_pin(pin: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove the pin {}", pin.display()), error)),
    }
}

/// Whether a pinned link is still attached to an interface. A pin that cannot be read counts as none.
pub(super) fn is_link_of(pin: &Path, index: u32) -> bool {
    bpf::pinned_link_interface(pin).is_ok_and(|interface| interface == index)
}
