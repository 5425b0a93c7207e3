//! Attaching the programs to interfaces and to the cgroup, and taking them off again.
//!
//! Links are pinned below the pin directory, named after hook and interface, so that they outlive the
//! agent; the next agent puts its own programs into them without a gap. clsact filters, which are no
//! links, outlive it by themselves and are replaced under a fixed priority and handle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp, XdpMode, links::FdLink,
    },
};
use tracing::{debug, warn};

use super::{
    super::{DatapathError, InterfaceMode, Mode, ReachedRung, TcChoice, XdpChoice},
    EbpfOptions, clsact,
    driver::driver_name,
    failed,
    hooks::{self, interface_name, remove_pin},
    uplink_rung::{Outcome, UplinkHooks, reached_rung},
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

/// The folder of the pinned links, among a version's pins.
pub(super) const LINKS: &str = "links";

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
    /// Whether tcx is used; clsact is where it does not work.
    tcx: Outcome,
    /// Pins found at start that nothing has claimed yet.
    unclaimed: BTreeSet<PathBuf>,
}

struct Uplink {
    interface: HostInterface,
    hooks: UplinkHooks,
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
        let links = pins.join(LINKS);
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
            tcx: match options.tc {
                TcChoice::Auto | TcChoice::Tcx => Outcome::Works,
                TcChoice::Clsact => Outcome::NotTried("clsact: asked for by --tc clsact".to_owned()),
            },
            unclaimed,
        })
    }

    /// Ends the first round of changes: what is still unclaimed is for interfaces that are none of ours
    /// any more.
    pub(super) fn remove_unclaimed(&mut self) -> Result<(), DatapathError> {
        for pin in std::mem::take(&mut self.unclaimed) {
            debug!(pin = %pin.display(), "removing a link that nothing needs any more");
            if let Err(error) = std::fs::remove_file(&pin) {
                warn!(pin = %pin.display(), %error, "could not remove a stale link");
            }
        }
        // Filters in clsact have no pins to tell of them.
        let found = sweep(|index, hook| self.clsact.iter().any(|kept| *kept == (index, hook)))?;
        if found > 0 {
            debug!(found, "removed tc filters that nothing needs any more");
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
        if let Some(uplink) = self.uplinks.get_mut(name)
            && uplink.interface.index == interface.index
        {
            uplink.interface = *interface;
            return Ok(());
        }
        self.attach_tc(programs, UPLINK_PROGRAM, interface.index, "ingress")?;
        let mut uplink_hooks = self.attach_xdp(programs, name, interface.index)?;
        uplink_hooks.tcx = self.tcx.clone();
        self.uplinks.insert(
            name.to_owned(),
            Uplink {
                interface: *interface,
                hooks: uplink_hooks,
            },
        );
        Ok(())
    }

    /// Tries the better hooks again. tc, which is complete by itself, carries everything while XDP changes
    /// its hook, and is on the new hook before it leaves the old one.
    pub(super) fn climb(&mut self, programs: &mut Ebpf) -> Result<(), DatapathError> {
        if matches!(self.tcx, Outcome::Refused(_)) {
            self.tcx = Outcome::Works;
            for (index, hook) in self.clsact.clone() {
                let program = self.program_in_clsact(index, hook);
                self.attach_tc(programs, program, index, hook)?;
                if self.tcx.works() && self.clsact.remove(&(index, hook)) {
                    hooks::detach_clsact(program, index, hook)?;
                }
            }
            clsact::release(&self.links)?;
        }
        let names: Vec<String> = self.uplinks.keys().cloned().collect();
        for name in names {
            let Some(uplink) = self.uplinks.get(&name) else {
                continue;
            };
            let index = uplink.interface.index;
            let mut uplink_hooks = uplink.hooks.clone();
            if matches!(uplink_hooks.native, Outcome::Refused(_)) {
                for mode in [XdpMode::Driver, XdpMode::Skb] {
                    remove_pin(&self.xdp_pin(index, mode))?;
                }
                uplink_hooks = self.attach_xdp(programs, &name, index)?;
            }
            uplink_hooks.tcx = if self.clsact.contains(&(index, "ingress")) {
                self.tcx.clone()
            } else {
                Outcome::Works
            };
            if let Some(uplink) = self.uplinks.get_mut(&name) {
                uplink.hooks = uplink_hooks;
            }
        }
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
                mode: uplink.hooks.mode,
                reason: uplink.hooks.reason(),
            })
            .collect()
    }

    pub(super) fn reached_rung(&self) -> ReachedRung {
        let uplinks = self.uplinks.iter();
        reached_rung(
            &uplinks
                .map(|(name, uplink)| (name.as_str(), &uplink.hooks))
                .collect(),
        )
    }

    /// Takes every program off. Pins are removed by the caller.
    pub(super) fn detach(&mut self) -> Result<(), DatapathError> {
        for (index, hook) in std::mem::take(&mut self.clsact) {
            hooks::detach_clsact(self.program_in_clsact(index, hook), index, hook)?;
        }
        clsact::release(&self.links)?;
        self.uplinks.clear();
        self.containers.clear();
        self.mesh0 = None;
        self.sockets = false;
        Ok(())
    }

    fn program_in_clsact(&self, index: u32, hook: &str) -> &'static str {
        match hook {
            "egress" => LOCAL_PROGRAM,
            _ if self.containers.contains(&index) => CONTAINER_PROGRAM,
            _ => UPLINK_PROGRAM,
        }
    }

    /// By tcx, or else by clsact: what refuses tcx once is not asked again until somebody says so.
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
        if self.tcx.works() {
            match hooks::attach_tcx(program, &interface, hook, &pin) {
                Ok(()) => {
                    self.unclaimed.remove(&pin);
                    return Ok(());
                }
                Err(error) => {
                    let words = mesh_support::error_chain(&error);
                    let error = failed(doing(), error);
                    if self.tc == TcChoice::Tcx || error.is_missing_device() {
                        return Err(error);
                    }
                    let reason = format!("clsact: this kernel refuses tcx ({words})");
                    warn!(reason, "falling back");
                    self.tcx = Outcome::Refused(reason);
                }
            }
        }
        if hooks::make_clsact(&interface) {
            clsact::remember(&self.links, index)?;
        }
        hooks::attach_clsact(program, &interface, hook).map_err(|error| failed(doing(), error))?;
        self.clsact.insert((index, hook));
        Ok(())
    }

    fn detach_tc(&mut self, name: &'static str, index: u32, hook: &'static str) -> Result<(), DatapathError> {
        remove_pin(&self.tc_pin(name, index, hook))?;
        if self.clsact.remove(&(index, hook)) {
            hooks::detach_clsact(name, index, hook)?;
            clsact::release(&self.links)?;
        }
        Ok(())
    }

    /// Attaches XDP as fast as it goes; says how fast, and why not faster. What is said of tcx is the
    /// caller's.
    fn attach_xdp(
        &mut self,
        programs: &mut Ebpf,
        name: &str,
        index: u32,
    ) -> Result<UplinkHooks, DatapathError> {
        let mut uplink_hooks = untried(self.xdp, name);
        for mode in [XdpMode::Driver, XdpMode::Skb] {
            let wanted = match mode {
                XdpMode::Driver => uplink_hooks.native.works(),
                _ => uplink_hooks.generic.works(),
            };
            if !wanted {
                continue;
            }
            let stale = self.xdp_pin(index, other(mode));
            if self.unclaimed.remove(&stale) {
                remove_pin(&stale)?;
            }
            let pin = self.xdp_pin(index, mode);
            let program: &mut Xdp = program(programs, XDP_PROGRAM)?;
            let outcome = hooks::attach_xdp(program, index, mode, &pin);
            if outcome.is_ok() {
                self.unclaimed.remove(&pin);
                uplink_hooks.mode = match mode {
                    XdpMode::Driver => Mode::XdpNative,
                    _ => Mode::XdpGeneric,
                };
                return Ok(uplink_hooks);
            }
            if let Err(error) = outcome {
                let refused = Outcome::Refused(format!(
                    "{} XDP refused: {}",
                    mode_name(mode),
                    mesh_support::error_chain(&error)
                ));
                match mode {
                    XdpMode::Driver => uplink_hooks.native = refused,
                    _ => uplink_hooks.generic = refused,
                }
            }
        }
        let reason = uplink_hooks.reason();
        warn!(interface = name, reason, "tc alone serves this uplink");
        Ok(uplink_hooks)
    }

    fn xdp_pin(&self, index: u32, mode: XdpMode) -> PathBuf {
        self.links
            .join(format!("{XDP_PROGRAM}_{}_{index}", mode_name(mode)))
    }

    fn tc_pin(&self, program: &str, index: u32, hook: &str) -> PathBuf {
        self.links.join(format!("{program}_{hook}_{index}"))
    }
}

/// Takes our filters off clsact on every interface, except those kept; says how many there were.
pub(super) fn sweep(keep: impl Fn(u32, &str) -> bool) -> Result<usize, DatapathError> {
    hooks::sweep_clsact(&[UPLINK_PROGRAM, CONTAINER_PROGRAM, LOCAL_PROGRAM], keep)
}

/// What the settings leave to be tried on an uplink, nothing attached yet.
fn untried(choice: XdpChoice, interface: &str) -> UplinkHooks {
    let not_tried = |reason: &str| Outcome::NotTried(reason.to_owned());
    let (native, generic) = match choice {
        XdpChoice::Off => {
            let off = not_tried("XDP is off: --xdp off");
            (off.clone(), off)
        }
        XdpChoice::Auto if driver_name(interface).is_some_and(|driver| driver == "veth") => {
            let veth = not_tried(
                "XDP is off: a veth hands over packets whose checksums are not finished, which XDP would \
                 forward so (with `ethtool -K … tx off` on its peer, --xdp native works)",
            );
            (veth.clone(), veth)
        }
        XdpChoice::Auto => (Outcome::Works, Outcome::Works),
        XdpChoice::Native => (
            Outcome::Works,
            not_tried("generic XDP is not asked for: --xdp native"),
        ),
        XdpChoice::Generic => (
            not_tried("native XDP is not asked for: --xdp generic"),
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

fn other(mode: XdpMode) -> XdpMode {
    match mode {
        XdpMode::Driver => XdpMode::Skb,
        _ => XdpMode::Driver,
    }
}

fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Driver => "native",
        _ => "generic",
    }
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
