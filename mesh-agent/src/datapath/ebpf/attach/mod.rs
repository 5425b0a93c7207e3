//! Attaching the programs to interfaces and to the cgroup, and detaching them.
//!
//! Links are pinned below the pin directory, named after program, hook and interface, so that they outlive
//! the agent; the next agent replaces the program in them without a gap. clsact filters are not links: they
//! outlive the agent by themselves and are replaced under a fixed priority and handle.

mod sockets;
mod tc;
mod verify;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{Program, ProgramError, SchedClassifier},
};
use mesh_ebpf::abi::Called;
use tracing::{debug, warn};

use self::tc::TcProgram;
pub(super) use self::tc::sweep;
use super::{
    super::{DatapathError, InterfaceMode, ReachedRung, TcChoice, XdpChoice},
    EbpfOptions, clsact, failed,
    hooks::{self, XdpHook, remove_pin},
    uplink_rung::{Outcome, UplinkHooks, reached_rung},
};
use crate::model::HostInterface;

/// The directory of the pinned links, among a version's pins.
pub(super) const LINKS: &str = "links";

/// The map of programs that other programs call.
pub(super) const CALLED: &str = "CALLED";

/// What is attached where.
pub(super) struct Attachments {
    links: PathBuf,
    /// The links of the data paths that are being replaced.
    replaced: Vec<PathBuf>,
    xdp: XdpChoice,
    tc: TcChoice,
    uplinks: BTreeMap<String, Uplink>,
    containers: BTreeSet<u32>,
    /// The last of them that was verified; the next ones follow.
    verified_containers: Option<u32>,
    mesh0: Option<u32>,
    sockets: bool,
    /// Programs that run as clsact filters, by interface. They have no pins.
    clsact: BTreeSet<(u32, TcProgram)>,
    /// Whether tcx is used; where it does not work, clsact is.
    tcx: Outcome,
    /// Pins found at start that nothing has claimed yet.
    unclaimed: BTreeSet<PathBuf>,
}

struct Uplink {
    interface: HostInterface,
    hooks: UplinkHooks,
    /// Whether XDP is off only because another uplink has none: see [`Attachments::level_xdp`].
    held_back: bool,
}

impl Uplink {
    /// Its program and its index, as the functions for tc take them.
    fn tc(&self) -> (TcProgram, u32) {
        (TcProgram::of_uplink(&self.interface), self.interface.index)
    }
}

/// Loads into the kernel every program that this node needs: a kernel that refuses one is noticed before any
/// hook has changed. The one for devices without MAC addresses is not among them unless an earlier agent has
/// used it, in one of the given folders: few nodes have such a device, and the verifier takes long for it.
pub(super) fn load_programs<'a>(
    programs: &mut Ebpf,
    mut folders: impl Iterator<Item = &'a Path>,
) -> Result<(), DatapathError> {
    let layer3 = TcProgram::Layer3.name();
    let has_layer3 = folders.any(|pins| {
        let links = std::fs::read_dir(pins.join(LINKS));
        links.is_ok_and(|links| {
            links
                .flatten()
                .any(|link| link.file_name().to_string_lossy().starts_with(layer3))
        })
    });
    let names: Vec<String> = programs.programs().map(|(name, _)| name.to_owned()).collect();
    let is_hooks = |name: &str| TcProgram::ALL.into_iter().any(|program| program.name() == name);
    let is_called = |name: &str| Called::ALL.iter().any(|called| called.name() == name);
    for name in &names {
        if (is_hooks(name) || !is_called(name)) && (name != layer3 || has_layer3) {
            loaded_program(programs, name)?;
        }
    }
    Ok(())
}

/// How often a program is loaded whose verification is interrupted. (libbpf gives up after 5 times, without a
/// pause; in takeovers on Linux 6.18 that was too few.)
const LOAD_ATTEMPTS: u32 = 100;
/// The pause between them.
const LOAD_PAUSE: Duration = Duration::from_millis(10);

/// Loads a program into the kernel, unless it is loaded, and returns whether it was not.
fn load(programs: &mut Ebpf, name: &str) -> Result<bool, DatapathError> {
    let program = programs
        .program_mut(name)
        .ok_or_else(|| failed(finding(name), "the object does not have it"))?;
    let mut attempts = 0;
    let loaded = loop {
        let loaded = match program {
            Program::Xdp(program) if program.fd().is_err() => program.load(),
            Program::SchedClassifier(program) if program.fd().is_err() => program.load(),
            Program::CgroupSockAddr(program) if program.fd().is_err() => program.load(),
            _ => return Ok(false),
        };
        attempts += 1;
        match loaded {
            Err(error) if is_interrupted(&error) && attempts < LOAD_ATTEMPTS => {
                debug!(
                    name,
                    attempts, "the verifier was interrupted, loading the program again"
                );
                thread::sleep(LOAD_PAUSE);
            }
            loaded => break loaded,
        }
    };
    loaded.map(|()| true).map_err(|error| {
        failed(
            format!("load the eBPF program {name} (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)"),
            error,
        )
    })
}

/// Whether the verifier stopped because its thread is to return to user space, as for a signal that ends no
/// process (`do_check` in the kernel's `verifier.c`).
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock)
}

/// Loads a program that others call, and makes it callable.
fn load_called(programs: &mut Ebpf, one: Called) -> Result<(), DatapathError> {
    load(programs, one.name())?;
    let what = || format!("make the eBPF program {} callable", one.name());
    let program: &mut SchedClassifier = programs
        .program_mut(one.name())
        .ok_or_else(|| failed(what(), "the eBPF object does not have it"))?
        .try_into()
        .map_err(|error| failed(what(), error))?;
    let program = program
        .fd()
        .and_then(|program| program.try_clone().map_err(ProgramError::IOError))
        .map_err(|error| failed(what(), error))?;
    let map = programs
        .map_mut(CALLED)
        .ok_or_else(|| failed(what(), "the eBPF object does not have the map of called programs"))?;
    let mut called = ProgramArray::try_from(map).map_err(|error| failed(what(), error))?;
    called
        .set(one as u32, &program, 0)
        .map_err(|error| failed(what(), error))
}

impl Attachments {
    /// Lists what an earlier agent left in its folder, and in those of data paths that are to be replaced.
    pub(super) fn adopt(
        pins: &Path,
        replaced: &[PathBuf],
        options: &EbpfOptions,
    ) -> Result<Self, DatapathError> {
        let links = pins.join(LINKS);
        let replaced: Vec<_> = replaced.iter().map(|pins| pins.join(LINKS)).collect();
        for earlier in &replaced {
            clsact::inherit(earlier, &links)?;
        }
        std::fs::create_dir_all(&links)
            .map_err(|error| failed(format!("create the pin directory {}", links.display()), error))?;
        let unclaimed = std::fs::read_dir(&links)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
            .map_err(|error| failed(format!("list the pins in {}", links.display()), error))?;
        Ok(Self {
            links,
            replaced,
            xdp: options.xdp,
            tc: options.tc,
            uplinks: BTreeMap::new(),
            containers: BTreeSet::new(),
            verified_containers: None,
            mesh0: None,
            sockets: false,
            clsact: BTreeSet::new(),
            tcx: match options.tc {
                TcChoice::Auto | TcChoice::Tcx => Outcome::Works,
                TcChoice::Clsact => Outcome::NotTried("clsact: chosen by --tc clsact".to_owned()),
            },
            unclaimed,
        })
    }

    /// Ends a takeover: what has been replaced is gone.
    pub(super) fn forget_replaced(&mut self) {
        self.replaced.clear();
    }

    /// Ends the first round of changes: what is still unclaimed belongs to interfaces that the data path no
    /// longer uses.
    pub(super) fn remove_unclaimed(&mut self) -> Result<(), DatapathError> {
        for pin in std::mem::take(&mut self.unclaimed) {
            debug!(pin = %pin.display(), "removing a stale link");
            if let Err(error) = std::fs::remove_file(&pin) {
                warn!(pin = %pin.display(), %error, "could not remove a stale link");
            }
        }
        // clsact filters have no pins: they are found on the interfaces.
        let removed = sweep(|index, hook| {
            self.clsact
                .iter()
                .any(|(kept, program)| (*kept, program.hook()) == (index, hook))
        })?;
        if removed > 0 {
            debug!(removed, "removed stale tc filters");
        }
        clsact::release(&self.links)
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
        // An interface that was renamed keeps its programs: their pins are named after the index.
        let known = self
            .uplinks
            .iter()
            .find(|(_, uplink)| uplink.interface.index == interface.index);
        if let Some(known) = known.map(|(name, _)| name.clone())
            && let Some(mut uplink) = self.uplinks.remove(&known)
        {
            let as_before = uplink.interface.has_vlans == interface.has_vlans;
            uplink.interface = *interface;
            if !as_before {
                for hook in XdpHook::ALL {
                    remove_pin(&self.xdp_pin(interface.index, hook))?;
                }
                uplink.hooks = UplinkHooks {
                    tcx: uplink.hooks.tcx,
                    ..self.attach_xdp(programs, name, interface)?
                };
                uplink.held_back = false;
            }
            self.uplinks.insert(name.to_owned(), uplink);
            return self.level_xdp(programs);
        }
        self.attach_tc(programs, TcProgram::of_uplink(interface), interface.index)?;
        let hooks = UplinkHooks {
            tcx: self.tcx.clone(),
            ..self.attach_xdp(programs, name, interface)?
        };
        self.uplinks.insert(
            name.to_owned(),
            Uplink {
                interface: *interface,
                hooks,
                held_back: false,
            },
        );
        self.level_xdp(programs)
    }

    /// Tries the better hooks again. Traffic does not stop: tc carries everything while XDP changes its hook,
    /// and a tc program runs on its new hook before it leaves the old one.
    pub(super) fn climb(&mut self, programs: &mut Ebpf) -> Result<(), DatapathError> {
        if matches!(self.tcx, Outcome::Refused(_)) {
            self.tcx = Outcome::Works;
            for (index, program) in self.clsact.clone() {
                self.attach_tc(programs, program, index)?;
                if self.tcx.works() && self.clsact.remove(&(index, program)) {
                    hooks::detach_clsact(program.name(), index, program.hook())?;
                }
            }
            clsact::release(&self.links)?;
        }
        let names: Vec<String> = self.uplinks.keys().cloned().collect();
        for name in names {
            let Some(uplink) = self.uplinks.get(&name) else {
                continue;
            };
            let (interface, (program, index)) = (uplink.interface, uplink.tc());
            let mut hooks = uplink.hooks.clone();
            if matches!(hooks.native, Outcome::Refused(_)) {
                for hook in XdpHook::ALL {
                    remove_pin(&self.xdp_pin(index, hook))?;
                }
                hooks = self.attach_xdp(programs, &name, &interface)?;
            }
            hooks.tcx = if self.clsact.contains(&(index, program)) {
                self.tcx.clone()
            } else {
                Outcome::Works
            };
            if let Some(uplink) = self.uplinks.get_mut(&name) {
                uplink.hooks = hooks;
            }
        }
        self.level_xdp(programs)
    }

    /// Detaches from an uplink.
    pub(super) fn remove_uplink(&mut self, programs: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
        let Some(uplink) = self.uplinks.remove(name) else {
            return Ok(());
        };
        let (program, index) = uplink.tc();
        for hook in XdpHook::ALL {
            remove_pin(&self.xdp_pin(index, hook))?;
        }
        self.detach_tc(program, index)?;
        self.level_xdp(programs)
    }

    /// Handles what comes out of a container, at the host end of its veth.
    pub(super) fn container(&mut self, programs: &mut Ebpf, index: u32) -> Result<(), DatapathError> {
        if self.containers.contains(&index) {
            return Ok(());
        }
        self.attach_tc(programs, TcProgram::Container, index)?;
        self.containers.insert(index);
        Ok(())
    }

    /// Detaches from the host end of a container's veth.
    pub(super) fn remove_container(&mut self, index: u32) -> Result<(), DatapathError> {
        self.containers.remove(&index);
        self.detach_tc(TcProgram::Container, index)
    }

    /// Handles what local processes send to the service address, on its way into `mesh0`.
    pub(super) fn mesh0(&mut self, programs: &mut Ebpf, index: u32) -> Result<(), DatapathError> {
        if self.mesh0 == Some(index) {
            return Ok(());
        }
        self.attach_tc(programs, TcProgram::Local, index)?;
        self.mesh0 = Some(index);
        Ok(())
    }

    /// The fastest hook that works on each uplink, and why not a faster one.
    pub(super) fn modes(&self) -> Vec<InterfaceMode> {
        self.uplinks
            .iter()
            .map(|(name, uplink)| InterfaceMode {
                interface: name.clone(),
                mode: uplink.hooks.mode,
                reason: uplink.hooks.reason(),
            })
            .collect()
    }

    /// The rung that all uplinks together have reached.
    pub(super) fn reached_rung(&self) -> ReachedRung {
        let uplinks = self.uplinks.iter();
        reached_rung(
            &uplinks
                .map(|(name, uplink)| (name.as_str(), &uplink.hooks))
                .collect(),
        )
    }

    /// Detaches every program. The caller removes the pins, and the links with them.
    pub(super) fn detach(&mut self) -> Result<(), DatapathError> {
        for (index, program) in std::mem::take(&mut self.clsact) {
            hooks::detach_clsact(program.name(), index, program.hook())?;
        }
        clsact::release(&self.links)?;
        self.uplinks.clear();
        self.containers.clear();
        self.mesh0 = None;
        self.sockets = false;
        Ok(())
    }
}

/// A program of the object, by its name. It is loaded where it is not.
fn program<'a, T>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut T, DatapathError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    loaded_program(programs, name)?
        .try_into()
        .map_err(|error: ProgramError| failed(finding(name), error))
}

/// The same, of any kind. The programs that it calls are loaded as well.
pub(super) fn loaded_program<'a>(
    programs: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut Program, DatapathError> {
    let calls = TcProgram::ALL.into_iter().find(|program| program.name() == name);
    if load(programs, name)?
        && let Some(program) = calls
    {
        for called in program.calls() {
            load_called(programs, *called)?;
        }
    }
    programs
        .program_mut(name)
        .ok_or_else(|| failed(finding(name), "the object does not have it"))
}

fn finding(name: &str) -> String {
    format!("find the program {name} in the eBPF object")
}
