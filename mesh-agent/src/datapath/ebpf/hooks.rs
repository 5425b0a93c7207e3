//! The kernel's hooks one by one: putting a program on tcx, clsact or XDP, and taking it off, pins
//! included. Keeps no books (`attach` does).

use std::{io, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    xdp::XdpLink,
};
use nix::net::if_::{if_indextoname, if_nameindex};

use super::{super::DatapathError, failed};

/// Priority and handle of our clsact filters: fixed, so that an agent finds those of the one before.
const CLSACT_PRIORITY: u16 = 0x4d53;
const CLSACT_HANDLE: u16 = 1;

/// Removes all pins of a version; what they hold goes with them.
pub(super) fn remove_pins(pins: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_dir_all(pins) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove the pins in {}", pins.display()), error)),
    }
}

/// Removes what agents with other map types have left: it cannot be adopted.
pub(super) fn remove_other_versions(pins: &Path, own: &Path) -> Result<(), DatapathError> {
    let Ok(entries) = std::fs::read_dir(pins) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path != own && path.is_dir() {
            remove_pins(&path)?;
        }
    }
    Ok(())
}

fn attach_type(hook: &str) -> TcAttachType {
    if hook == "egress" {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

/// Puts the program into the pinned link if there is one that still holds, else makes and pins one.
pub(super) fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    hook: &str,
    pin: &Path,
) -> Result<(), ProgramError> {
    let adopted = PinnedLink::from_pin(pin)
        .ok()
        .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
        .and_then(|link| program.attach_to_link(link).ok());
    if let Some(id) = adopted {
        // The pin keeps the link; our descriptor of it may go.
        return program.take_link(id).map(drop);
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, attach_type(hook), options)?;
    pin_link(FdLink::try_from(program.take_link(id)?), pin)
}

/// The same for XDP.
pub(super) fn attach_xdp(
    program: &mut Xdp,
    index: u32,
    mode: XdpMode,
    pin: &Path,
) -> Result<(), ProgramError> {
    let adopted = PinnedLink::from_pin(pin)
        .ok()
        .and_then(|pinned| XdpLink::try_from(FdLink::from(pinned)).ok())
        .and_then(|link| program.attach_to_link(link).ok());
    if let Some(id) = adopted {
        return program.take_link(id).map(drop);
    }
    let id = program.attach_to_if_index(index, mode)?;
    pin_link(FdLink::try_from(program.take_link(id)?), pin)
}

fn pin_link(link: Result<FdLink, LinkError>, pin: &Path) -> Result<(), ProgramError> {
    let link = link.map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    // A pin whose link no longer held.
    match std::fs::remove_file(pin) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ProgramError::IOError(error)),
    }
    link.pin(pin)
        .map(drop)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

/// Makes the discipline that filters hang on; false where there is one already, which serves as well.
pub(super) fn make_clsact(interface: &str) -> bool {
    tc::qdisc_add_clsact(interface).is_ok()
}

/// Puts the program into our filter, which stays when nobody holds it.
pub(super) fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    hook: &str,
) -> Result<(), ProgramError> {
    let attach_type = attach_type(hook);
    let handle = TcHandle::new(0, CLSACT_HANDLE);
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle,
        classid: None,
    };
    let id = match program.attach_with_options(interface, attach_type, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(_) => {
            // An agent before has left its filter: replace the program in it.
            let link = SchedClassifierLink::attached(interface, attach_type, CLSACT_PRIORITY, handle, None)
                .map_err(ProgramError::IOError)?;
            program.attach_to_link(link)?
        }
    };
    // A filter stays when its handle here is forgotten, as links do that are pinned.
    program.take_link(id).map(std::mem::forget)
}

/// Takes a program's filter off; nothing to do where it, or the interface, is gone.
pub(super) fn detach_clsact(program: &str, index: u32, hook: &str) -> Result<(), DatapathError> {
    // An interface that is gone has taken its filters with it.
    let Ok(interface) = interface_name(index) else {
        return Ok(());
    };
    match tc::qdisc_detach_program(&interface, attach_type(hook), program) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(
            format!("detach {program} from tc {hook} of {interface}"),
            error,
        )),
    }
}

/// Takes every filter of the given programs off, on both hooks of every interface, except those kept.
/// Says on how many there were any.
pub(super) fn sweep_clsact(
    programs: &[&str],
    keep: impl Fn(u32, &str) -> bool,
) -> Result<usize, DatapathError> {
    let interfaces =
        if_nameindex().map_err(|error| failed("list the interfaces to look for tc filters", error))?;
    let mut found = 0;
    for interface in &interfaces {
        for hook in ["ingress", "egress"] {
            if keep(interface.index(), hook) {
                continue;
            }
            for program in programs {
                let name = interface.name().to_string_lossy();
                if tc::qdisc_detach_program(&name, attach_type(hook), program).is_ok() {
                    found += 1;
                }
            }
        }
    }
    Ok(found)
}

/// The name of an interface of this network namespace.
pub(super) fn interface_name(index: u32) -> Result<String, DatapathError> {
    if_indextoname(index)
        .map(|name| name.to_string_lossy().into_owned())
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
