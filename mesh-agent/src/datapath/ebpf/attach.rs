//! Attaching the programs to interfaces and to the cgroup, and taking them off again.
//!
//! Links are pinned below the pin directory, named after hook and interface, so that they outlive the
//! agent; the next agent puts its own programs into them without a gap. clsact filters, which are no
//! links, outlive it by themselves and are replaced under a fixed priority and handle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType,
        Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
        xdp::XdpLink,
    },
};
use nix::net::if_::if_indextoname;
use tracing::{debug, warn};

use super::{
    super::{DatapathError, InterfaceMode, Mode, TcChoice, XdpChoice},
    EbpfOptions,
    driver::driver_name,
    failed,
};
use crate::model::HostInterface;

const XDP_PROGRAM: &str = "mesh_xdp";
const UPLINK_PROGRAM: &str = "mesh_uplink";
const CONTAINER_PROGRAM: &str = "mesh_container";
const LOCAL_PROGRAM: &str = "mesh_local";
/// `recvmsg` and `getpeername` first: nobody may be turned before they can be put right.
const SOCKET_PROGRAMS: [&str; 8] = [
    "mesh_recvmsg4",
    "mesh_recvmsg6",
    "mesh_getpeername4",
    "mesh_getpeername6",
    "mesh_connect4",
    "mesh_connect6",
    "mesh_sendmsg4",
    "mesh_sendmsg6",
];
/// Priority and handle of our clsact filters: fixed, so that an agent finds those of the one before.
const CLSACT_PRIORITY: u16 = 0x4d53;
const CLSACT_HANDLE: u16 = 1;

/// What is attached where.
pub(super) struct Attachments {
    links: PathBuf,
    xdp: XdpChoice,
    tc: TcChoice,
    uplinks: BTreeMap<String, Uplink>,
    containers: BTreeSet<u32>,
    mesh0: Option<u32>,
    sockets: bool,
    /// Interfaces with filters in clsact, and which hook: no pin tells of them.
    clsact: BTreeSet<(u32, &'static str)>,
    /// Why tcx is not used; empty while it is.
    tc_reason: String,
    /// Pins found at start that nothing has claimed yet.
    unclaimed: BTreeSet<PathBuf>,
}

struct Uplink {
    interface: HostInterface,
    mode: Mode,
    reason: String,
}

/// Loads every program into the kernel.
pub(super) fn load_programs(programs: &mut Ebpf) -> Result<(), DatapathError> {
    for (name, program) in programs.programs_mut() {
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => continue,
        };
        loaded.map_err(|error| {
            failed(
                format!("load the eBPF program {name} (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)"),
                error,
            )
        })?;
    }
    Ok(())
}

impl Attachments {
    /// Looks at what an agent before has left.
    pub(super) fn adopt(pins: &Path, options: &EbpfOptions) -> Result<Self, DatapathError> {
        let links = pins.join("links");
        std::fs::create_dir_all(&links)
            .map_err(|error| failed(format!("create the pin directory {}", links.display()), error))?;
        let unclaimed = std::fs::read_dir(&links)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
            .map_err(|error| failed(format!("list the pins in {}", links.display()), error))?;
        Ok(Self {
            links,
            xdp: options.xdp,
            tc: options.tc,
            uplinks: BTreeMap::new(),
            containers: BTreeSet::new(),
            mesh0: None,
            sockets: false,
            clsact: BTreeSet::new(),
            tc_reason: String::new(),
            unclaimed,
        })
    }

    /// Ends the first round of changes: what is still unclaimed is for interfaces that are none of ours
    /// any more.
    pub(super) fn remove_unclaimed(&mut self) {
        for pin in std::mem::take(&mut self.unclaimed) {
            debug!(pin = %pin.display(), "removing a link that nothing needs any more");
            if let Err(error) = std::fs::remove_file(&pin) {
                warn!(pin = %pin.display(), %error, "could not remove a stale link");
            }
        }
    }

    /// MTU of the smallest uplink, bytes.
    pub(super) fn smallest_uplink_mtu(&self) -> Option<u32> {
        self.uplinks.values().map(|uplink| uplink.interface.mtu).min()
    }

    /// Balances what arrives on an uplink: tc first, which is complete by itself, then XDP.
    pub(super) fn uplink(
        &mut self,
        programs: &mut Ebpf,
        name: &str,
        interface: &HostInterface,
    ) -> Result<(), DatapathError> {
        if let Some(uplink) = self.uplinks.get_mut(name)
            && uplink.interface.index == interface.index
        {
            uplink.interface = *interface;
            return Ok(());
        }
        self.attach_tc(programs, UPLINK_PROGRAM, interface.index, "ingress")?;
        let (mode, mut reason) = self.attach_xdp(programs, name, interface.index)?;
        if !self.tc_reason.is_empty() {
            reason = [reason.as_str(), self.tc_reason.as_str()]
                .join("; ")
                .trim_start_matches("; ")
                .to_owned();
        }
        self.uplinks.insert(
            name.to_owned(),
            Uplink {
                interface: *interface,
                mode,
                reason,
            },
        );
        Ok(())
    }

    pub(super) fn remove_uplink(&mut self, name: &str) -> Result<(), DatapathError> {
        let Some(uplink) = self.uplinks.remove(name) else {
            return Ok(());
        };
        for mode in [XdpMode::Driver, XdpMode::Skb] {
            remove_pin(&self.xdp_pin(uplink.interface.index, mode))?;
        }
        self.detach_tc(UPLINK_PROGRAM, uplink.interface.index, "ingress")
    }

    pub(super) fn container(&mut self, programs: &mut Ebpf, index: u32) -> Result<(), DatapathError> {
        if self.containers.contains(&index) {
            return Ok(());
        }
        self.attach_tc(programs, CONTAINER_PROGRAM, index, "ingress")?;
        self.containers.insert(index);
        Ok(())
    }

    pub(super) fn remove_container(&mut self, index: u32) -> Result<(), DatapathError> {
        self.containers.remove(&index);
        self.detach_tc(CONTAINER_PROGRAM, index, "ingress")
    }

    pub(super) fn mesh0(&mut self, programs: &mut Ebpf, index: u32) -> Result<(), DatapathError> {
        if self.mesh0 == Some(index) {
            return Ok(());
        }
        self.attach_tc(programs, LOCAL_PROGRAM, index, "egress")?;
        self.mesh0 = Some(index);
        Ok(())
    }

    /// Turns local processes' connections, from now on.
    pub(super) fn sockets(&mut self, programs: &mut Ebpf, cgroup: &Path) -> Result<(), DatapathError> {
        if self.sockets {
            return Ok(());
        }
        let root = File::open(cgroup)
            .map_err(|error| failed(format!("open the cgroup2 hierarchy {}", cgroup.display()), error))?;
        for name in SOCKET_PROGRAMS {
            let doing = || format!("attach {name} to the cgroup {}", cgroup.display());
            let program: &mut CgroupSockAddr = program(programs, name)?;
            // A link stands beside others whatever the mode; the kernel takes no flags with it.
            let link = program
                .attach(&root, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|error| failed(doing(), error))?;
            let link = FdLink::try_from(link).map_err(|error| failed(doing(), error))?;
            // Over the old one's pin in one step: for a moment both are there, never none.
            let pin = self.links.join(name);
            let fresh = self.links.join(format!("{name}_new"));
            remove_pin(&fresh)?;
            link.pin(&fresh)
                .map_err(|error| failed(format!("pin {}", fresh.display()), error))?;
            std::fs::rename(&fresh, &pin).map_err(|error| failed(format!("pin {}", pin.display()), error))?;
            self.unclaimed.remove(&pin);
            self.unclaimed.remove(&fresh);
        }
        self.sockets = true;
        Ok(())
    }

    pub(super) fn modes(&self) -> Vec<InterfaceMode> {
        self.uplinks
            .iter()
            .map(|(name, uplink)| InterfaceMode {
                interface: name.clone(),
                mode: uplink.mode,
                reason: uplink.reason.clone(),
            })
            .collect()
    }

    /// Takes every program off. Pins are removed by the caller.
    pub(super) fn detach(&mut self) -> Result<(), DatapathError> {
        for (index, hook) in std::mem::take(&mut self.clsact) {
            let program = match hook {
                "egress" => LOCAL_PROGRAM,
                _ if self.containers.contains(&index) => CONTAINER_PROGRAM,
                _ => UPLINK_PROGRAM,
            };
            detach_clsact(program, index, hook)?;
        }
        self.uplinks.clear();
        self.containers.clear();
        self.mesh0 = None;
        self.sockets = false;
        Ok(())
    }

    fn attach_tc(
        &mut self,
        programs: &mut Ebpf,
        name: &'static str,
        index: u32,
        hook: &'static str,
    ) -> Result<(), DatapathError> {
        let interface = interface_name(index)?;
        let doing = || format!("attach {name} to tc {hook} of {interface}");
        let program: &mut SchedClassifier = program(programs, name)?;
        let pin = self.tc_pin(name, index, hook);
        if self.tc != TcChoice::Clsact && self.tc_reason.is_empty() {
            match attach_tcx(program, &interface, attach_type(hook), &pin) {
                Ok(()) => {
                    self.unclaimed.remove(&pin);
                    return Ok(());
                }
                Err(error) if self.tc == TcChoice::Tcx || !is_unsupported(&error) => {
                    return Err(failed(doing(), error));
                }
                Err(error) => {
                    self.tc_reason = format!("clsact: this kernel refuses tcx ({error})");
                    warn!(reason = self.tc_reason, "falling back");
                }
            }
        }
        if self.tc_reason.is_empty() {
            self.tc_reason = "clsact: asked for by --tc clsact".to_owned();
        }
        attach_clsact(program, &interface, attach_type(hook)).map_err(|error| failed(doing(), error))?;
        self.clsact.insert((index, hook));
        Ok(())
    }

    fn detach_tc(&mut self, name: &'static str, index: u32, hook: &'static str) -> Result<(), DatapathError> {
        remove_pin(&self.tc_pin(name, index, hook))?;
        if self.clsact.remove(&(index, hook)) {
            detach_clsact(name, index, hook)?;
        }
        Ok(())
    }

    /// Attaches XDP as fast as it goes; says how fast, and why not faster.
    fn attach_xdp(
        &mut self,
        programs: &mut Ebpf,
        name: &str,
        index: u32,
    ) -> Result<(Mode, String), DatapathError> {
        let modes: &[XdpMode] = match self.xdp {
            XdpChoice::Off => return Ok((Mode::Tc, "XDP is off: --xdp off".to_owned())),
            XdpChoice::Auto if driver_name(name).is_some_and(|driver| driver == "veth") => {
                let reason = "XDP is off: a veth hands over packets whose checksums are not finished, which XDP would \
                              forward so (with `ethtool -K … tx off` on its peer, --xdp native works)";
                return Ok((Mode::Tc, reason.to_owned()));
            }
            XdpChoice::Auto => &[XdpMode::Driver, XdpMode::Skb],
            XdpChoice::Native => &[XdpMode::Driver],
            XdpChoice::Generic => &[XdpMode::Skb],
        };
        let mut refusals = Vec::new();
        for mode in modes {
            let other = if matches!(mode, XdpMode::Driver) {
                XdpMode::Skb
            } else {
                XdpMode::Driver
            };
            let stale = self.xdp_pin(index, other);
            if self.unclaimed.remove(&stale) {
                remove_pin(&stale)?;
            }
            let pin = self.xdp_pin(index, *mode);
            let program: &mut Xdp = program(programs, XDP_PROGRAM)?;
            match attach_xdp(program, index, *mode, &pin) {
                Ok(()) => {
                    self.unclaimed.remove(&pin);
                    let mode = if matches!(mode, XdpMode::Driver) {
                        Mode::XdpNative
                    } else {
                        Mode::XdpGeneric
                    };
                    return Ok((mode, refusals.join("; ")));
                }
                Err(error) => {
                    let mode = if matches!(mode, XdpMode::Driver) {
                        "native"
                    } else {
                        "generic"
                    };
                    refusals.push(format!("{mode} XDP refused: {}", chain(&error)));
                }
            }
        }
        warn!(
            interface = name,
            reason = refusals.join("; "),
            "tc alone serves this uplink"
        );
        Ok((Mode::Tc, refusals.join("; ")))
    }

    fn xdp_pin(&self, index: u32, mode: XdpMode) -> PathBuf {
        let mode = if matches!(mode, XdpMode::Driver) {
            "native"
        } else {
            "generic"
        };
        self.links.join(format!("{XDP_PROGRAM}_{mode}_{index}"))
    }

    fn tc_pin(&self, program: &str, index: u32, hook: &str) -> PathBuf {
        self.links.join(format!("{program}_{hook}_{index}"))
    }
}

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

fn program<'a, T>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut T, DatapathError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let doing = || format!("find the program {name} in the eBPF object");
    let program = programs
        .program_mut(name)
        .ok_or_else(|| failed(doing(), "it is not there"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| failed(doing(), error))
}

fn attach_type(hook: &str) -> TcAttachType {
    if hook == "egress" {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

/// Puts the program into the pinned link if there is one that still holds, else makes and pins one.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
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
    let id = program.attach_with_options(interface, attach_type, options)?;
    pin_link(FdLink::try_from(program.take_link(id)?), pin)
}

fn attach_xdp(program: &mut Xdp, index: u32, mode: XdpMode, pin: &Path) -> Result<(), ProgramError> {
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

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    attach_type: TcAttachType,
) -> Result<(), ProgramError> {
    // Refused when there is one already, which serves as well.
    let _ = tc::qdisc_add_clsact(interface);
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

fn detach_clsact(program: &str, index: u32, hook: &str) -> Result<(), DatapathError> {
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

fn interface_name(index: u32) -> Result<String, DatapathError> {
    if_indextoname(index)
        .map(|name| name.to_string_lossy().into_owned())
        .map_err(|error| failed(format!("find the interface with index {index}"), error))
}

/// Whether a kernel says so that it does not know tcx.
fn is_unsupported(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error)
        if matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::E2BIG)))
}

fn remove_pin(pin: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove the pin {}", pin.display()), error)),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
