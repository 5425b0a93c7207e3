//! The eBPF data path: loads the programs, keeps their maps equal to the desired state, attaches them.
//! aya's types appear in this folder only.
//!
//! Maps and links are pinned below the pin directory: traffic goes on when the agent dies, and the next agent
//! adopts what it finds (see `tables`).

mod attach;
mod batch;
mod clock;
mod clsact;
mod driver;
pub(super) mod dump;
mod earlier;
mod explain;
mod flow_list;
mod flows;
mod frame;
mod hooks;
mod host_macs;
mod limits;
mod mapped;
mod maps;
mod monitor;
mod options;
mod pins;
pub(super) mod rings;
mod slots;
mod tables;
mod takeover;
mod uplink_rung;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, VerifierLogLevel, programs::Program};
use mesh_ebpf::{
    abi::{Config, Event},
    bytes::{Be16, Be32},
    headers::KEYED_OUTER_LENGTH,
};
use mesh_support::{bpf::empty_pinned_map, error_chain};
use tracing::{debug, warn};

pub use self::options::EbpfOptions;
use self::{
    attach::Attachments,
    clock::{Clock, present_span},
    flows::FlowSweep,
    limits::LimitHistory,
    maps::Maps,
    monitor::Monitor,
    pins::Wanted,
    tables::Tables,
    takeover::Takeover,
};
use super::{
    ChangeError, Counters, Datapath, DatapathError, InterfaceMode, ReachedRung,
    dump::Dump,
    explain::{Explanation, Question},
    failed,
    failed_change::culprit,
    flow_list::{FlowCursor, ListedFlow},
    limited::LimitedServices,
    mapped::MappedClient,
    monitor::Observations,
};
use crate::{
    model::{Desired, KeyId, MacAddress, NodeDatapath, ReturnMode, TunnelKey, TunnelKeys, desired::Settings},
    plan::DatapathChange,
};

/// The programs, or nothing when the agent was built without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh.o"));

/// MTU assumed until an uplink is known: Ethernet's.
const DEFAULT_MTU: u32 = 1500;
/// Attachments are verified with every so-manieth maintenance.
const VERIFY_EVERY: u32 = 3;

/// The loaded data path.
pub struct EbpfDatapath {
    programs: Ebpf,
    maps: Maps,
    monitor: Monitor,
    tables: Tables,
    attachments: Attachments,
    takeover: Takeover,
    sweep: FlowSweep,
    limits: LimitHistory,
    config: Config,
    clock: Clock,
    options: EbpfOptions,
    adopted: bool,
    maintenances: u32,
}

/// The settings until the first are applied; the rest of them is that of an earlier agent.
fn first_config(options: &EbpfOptions, earlier: Config) -> Config {
    Config {
        service_address: options.service_address.into(),
        geneve_port: Be16::new(options.geneve_port),
        netns_cookie: options.netns_cookie,
        inner_mtu: inner_mtu(DEFAULT_MTU),
        ..earlier
    }
}

impl EbpfDatapath {
    /// Loads the programs into the kernel and adopts the maps and links of an earlier agent.
    ///
    /// # Errors
    /// Names the step that failed: no object, a map, or a program with the end of the verifier's log.
    pub fn load(options: EbpfOptions) -> Result<Self, DatapathError> {
        if OBJECT.is_empty() {
            return Err(failed(
                "load the eBPF programs",
                "this agent was built without them: build it with `cargo xtask build`",
            ));
        }
        Self::load_object(OBJECT, options)
    }

    /// Loads a given object; for tests of other builds.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(object: &[u8], options: EbpfOptions) -> Result<Self, DatapathError> {
        let wanted = Wanted::of(object, &options)?;
        let takeover = Takeover::begin(&options.pins, &wanted)?;
        match Self::load_into(object, options, &wanted, &takeover) {
            Ok(datapath) => Ok(Self { takeover, ..datapath }),
            Err(error) => Err(takeover.give_up(error)),
        }
    }

    fn load_into(
        object: &[u8],
        options: EbpfOptions,
        wanted: &Wanted,
        takeover: &Takeover,
    ) -> Result<Self, DatapathError> {
        let pins = takeover.own();
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(pins)
            .map_max_entries("FLOWS", options.flow_capacity)
            .map_max_entries("HALF_OPEN", options.half_open_capacity())
            .verifier_log_level(VerifierLogLevel::STATS);
        for (map, entries) in &options.map_sizes {
            loader.map_max_entries(map, *entries);
        }
        let mut programs = loader
            .load(object)
            .map_err(|error| failed("load the eBPF maps", error))?;
        if !options.load_when_used {
            let earlier = takeover.sources().iter().map(PathBuf::as_path);
            attach::load_programs(&mut programs, earlier.chain([pins]))?;
        }
        wanted.mark(pins)?;
        takeover.copy_tables()?;
        let mut maps = Maps::take(&mut programs)?;
        let monitor = Monitor::take(&mut programs, maps.cpus)?;
        let old = maps.config()?;
        let config = first_config(&options, old);
        let tables = Tables::adopt(&mut maps, options.flood_limit())?;
        let attachments = Attachments::adopt(pins, takeover.sources(), &options)?;
        debug!(backends = tables.backend_count(), "data path loaded");
        let clock = Clock::starting_at(old.now);
        Ok(Self {
            programs,
            maps,
            monitor,
            tables,
            attachments,
            takeover: Takeover::default(),
            sweep: FlowSweep::default(),
            limits: LimitHistory::default(),
            config,
            clock,
            options,
            // Each agent writes its clock, which is never 0.
            adopted: old.now != 0,
            maintenances: 0,
        })
    }

    /// A loaded program, for tests that run it on frames.
    ///
    /// # Errors
    /// When there is none of this name, or the kernel refuses it.
    pub fn program(&mut self, name: &str) -> Result<&mut Program, DatapathError> {
        attach::loaded_program(&mut self.programs, name)
    }

    /// Empties every map, as if nothing had been applied since the programs were loaded, for tests that use
    /// them again. What was attached has to be detached.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start_over(&mut self) -> Result<(), DatapathError> {
        let read = |error| failed("read the folder of the pins", error);
        for pin in fs::read_dir(self.takeover.own()).map_err(read)? {
            let pin = pin.map_err(read)?;
            let name = pin.file_name();
            let is_map = name
                .to_string_lossy()
                .starts_with(|first: char| first.is_ascii_uppercase());
            if is_map {
                empty_pinned_map(&pin.path()).map_err(|error| failed("empty a map", error))?;
            }
        }
        self.tables = Tables::adopt(&mut self.maps, self.options.flood_limit())?;
        self.sweep = FlowSweep::default();
        self.limits = LimitHistory::default();
        self.clock = Clock::starting_at(0);
        self.adopted = false;
        self.maintenances = 0;
        self.config = first_config(&self.options, Config::default());
        Ok(())
    }

    /// The object, for tests that need to know what is in it.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.programs
    }

    fn apply_one(&mut self, change: &DatapathChange) -> Result<(), DatapathError> {
        match change {
            DatapathChange::Configure(settings) => self.configure(settings),
            DatapathChange::SetMacs(macs) => self.set_macs(macs),
            DatapathChange::UpsertPeer(address, hop) => {
                self.tables.upsert_peer(&mut self.maps, *address, *hop)
            }
            DatapathChange::UpsertMasquerade(key, source) => {
                self.tables.upsert_masquerade(&mut self.maps, *key, *source)
            }
            DatapathChange::RemoveMasquerade(key) => self.tables.remove_masquerade(&mut self.maps, *key),
            DatapathChange::UpsertBackend(key, backend) => {
                self.tables.upsert_backend(&mut self.maps, *key, backend)
            }
            DatapathChange::UpsertService(key, service) => {
                self.tables.upsert_service(&mut self.maps, *key, service)
            }
            DatapathChange::AddOwnIpv6(address, to) => mapped::add_own(&mut self.maps, *address, *to),
            DatapathChange::RemoveOwnIpv6(address, to) => mapped::remove_own(&mut self.maps, *address, *to),
            DatapathChange::AddFrontend(frontend) => self.tables.add_frontend(&mut self.maps, *frontend),
            DatapathChange::AttachContainer(index) => self.attachments.container(&mut self.programs, *index),
            DatapathChange::AttachUplink(name, uplink) => {
                self.attachments.uplink(&mut self.programs, name, uplink)?;
                self.follow_uplink_mtu()
            }
            DatapathChange::DetachUplink(name) => {
                self.attachments.remove_uplink(&mut self.programs, name)?;
                self.follow_uplink_mtu()
            }
            DatapathChange::RemoveFrontend(frontend) => {
                self.tables.remove_frontend(&mut self.maps, *frontend)
            }
            DatapathChange::RemoveService(key) => self.tables.remove_service(&mut self.maps, *key),
            DatapathChange::RemoveBackend(key) => self.tables.remove_backend(&mut self.maps, *key),
            DatapathChange::DetachContainer(index) => self.attachments.remove_container(*index),
            DatapathChange::RemovePeer(address) => self.tables.remove_peer(&mut self.maps, *address),
        }
    }

    fn apply_each<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a DatapathChange>,
        errors: &mut Vec<ChangeError>,
    ) {
        for change in changes {
            if let Err(source) = self.apply_one(change) {
                errors.push(ChangeError {
                    change: change.clone(),
                    service: change.service(),
                    source,
                });
            }
        }
    }

    /// Rings first, then the backends that no ring names any more: no packet picks a missing backend.
    fn settle(&mut self, changes: &[DatapathChange], errors: &mut Vec<ChangeError>) {
        for (service, source) in self.tables.settle(&mut self.maps) {
            match culprit(changes, service) {
                Some(change) => errors.push(ChangeError {
                    change: change.clone(),
                    service,
                    source,
                }),
                None => warn!(
                    error = error_chain(&source),
                    "a table could not be updated, retrying"
                ),
            }
        }
    }

    fn copy_flows(&mut self) {
        if let Err(error) = self.takeover.copy_flows() {
            warn!(
                error = error_chain(&error),
                "connections of the earlier data path may be lost"
            );
        }
    }

    fn configure(&mut self, settings: &Settings) -> Result<(), DatapathError> {
        self.config.node_address = settings.node_address.map_or(Be32::default(), Into::into);
        self.config.vni = Be32::new(settings.vni << 8);
        self.config.direct_return = u32::from(settings.return_mode == ReturnMode::Dsr);
        let (index, mac) = settings.mesh0.map_or((0, [0; 6]), |mesh0| {
            (mesh0.index, mesh0.mac.unwrap_or_default().0)
        });
        self.config.mesh0 = index;
        self.config.mesh0_mac = mac;
        self.write_config()?;
        if index != 0 {
            self.attachments.mesh0(&mut self.programs, index)?;
        }
        self.attachments.sockets(&mut self.programs, &self.options.cgroup)
    }

    /// No frame is taken for another machine's before all of the node's own addresses are known.
    fn set_macs(&mut self, macs: &BTreeSet<MacAddress>) -> Result<(), DatapathError> {
        let are_all_known = host_macs::add(&mut self.maps, macs)?;
        self.config.knows_macs = u16::from(are_all_known);
        self.write_config()?;
        host_macs::retain(&mut self.maps, macs)
    }

    fn follow_uplink_mtu(&mut self) -> Result<(), DatapathError> {
        self.config.inner_mtu = inner_mtu(self.attachments.smallest_uplink_mtu().unwrap_or(DEFAULT_MTU));
        self.write_config()
    }

    fn write_config(&mut self) -> Result<(), DatapathError> {
        self.config.now = self.clock.now();
        self.maps.set_config(&self.config)
    }
}

impl Datapath for EbpfDatapath {
    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
        let mut errors = Vec::new();
        if !self.takeover.is_pending() {
            self.apply_each(changes.iter(), &mut errors);
            self.settle(changes, &mut errors);
            return errors;
        }
        // The tables are complete before a program that reads them is attached.
        let (hooks, tables): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.attaches());
        self.apply_each(tables.into_iter(), &mut errors);
        self.settle(changes, &mut errors);
        self.copy_flows();
        if !hooks.is_empty() {
            self.takeover.switch();
            self.apply_each(hooks.into_iter(), &mut errors);
            self.copy_flows();
        }
        errors
    }

    fn set_keys(&mut self, keys: &TunnelKeys) -> Result<(), DatapathError> {
        self.tables.set_keys(&mut self.maps, keys)
    }

    fn key_ids(&self) -> Vec<KeyId> {
        self.tables.key_ids()
    }

    fn sent_keys(&self) -> BTreeMap<Ipv4Addr, TunnelKey> {
        self.tables.sent_keys()
    }

    fn prune(&mut self, desired: &Desired) -> Result<(), DatapathError> {
        // The changes so far have claimed what is desired.
        self.tables.remove_unclaimed(&mut self.maps)?;
        if let Some((_, error)) = self.tables.settle(&mut self.maps).into_iter().next() {
            return Err(error);
        }
        mapped::retain_own(&mut self.maps, &desired.own_ipv6)?;
        self.attachments.remove_unclaimed()?;
        self.takeover.finish()?;
        self.attachments.forget_replaced();
        Ok(())
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let mut counters = self
            .tables
            .counters(&mut self.maps, self.sweep.active(), self.sweep.open())?;
        counters.drops = self.maps.drops()?;
        counters.maps = self.tables.usage([
            ("flows", self.sweep.entries(), self.options.flow_capacity),
            (
                "half_open",
                self.sweep.half_open_entries(),
                self.options.half_open_capacity(),
            ),
        ]);
        counters.flow_evictions = self.sweep.pushed_out();
        counters.half_open_evictions = self.sweep.half_open_pushed_out();
        counters.flows_not_opened = self.maps.events(Event::FlowNotOpened)?;
        counters.unknown_flows = self.maps.events(Event::FlowUnknown)?;
        counters.untracked_packets = self.maps.events(Event::FlowUntracked)?;
        counters.flows_adopted = self.maps.events(Event::FlowAdopted)?;
        counters.frames_for_others = self.maps.events(Event::OtherMachine)?;
        counters.answers_suppressed = self.maps.events(Event::AnswerSuppressed)?;
        counters.packets_sent_back = self.maps.events(Event::SentBack)?;
        counters.flows_moved = self.maps.events(Event::FlowMoved)?;
        Ok(counters)
    }

    fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError> {
        dump::read(&self.maps, flows)
    }

    fn read_flows(
        &mut self,
        cursor: &mut FlowCursor,
        visit: &mut dyn FnMut(ListedFlow),
    ) -> Result<bool, DatapathError> {
        let backends = self.tables.backends_by_index();
        flow_list::read(&self.maps, cursor, &backends, self.clock.now(), visit)
    }

    fn explain(&mut self, question: &Question) -> Result<Explanation, DatapathError> {
        explain::explain(&self.programs, &self.maps, self.clock.now(), question)
    }

    fn observe(&mut self, since: Option<u64>) -> Result<Observations, DatapathError> {
        let backends = self.tables.backends_by_index();
        self.monitor.observe(since, &self.maps, &self.config, &backends)
    }

    fn mapped_clients(&mut self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
        mapped::clients(&self.maps, of)
    }

    fn limited(&self) -> LimitedServices {
        self.limits.limited().clone()
    }

    fn kind(&self) -> NodeDatapath {
        NodeDatapath::Ebpf
    }

    fn adopted(&self) -> bool {
        self.adopted
    }

    fn modes(&self) -> Vec<InterfaceMode> {
        self.attachments.modes()
    }

    fn reached_rung(&self) -> ReachedRung {
        self.attachments.reached_rung()
    }

    fn climb(&mut self) -> Result<(), DatapathError> {
        self.attachments.climb(&mut self.programs)
    }

    fn maintain(&mut self) -> Result<(), DatapathError> {
        self.write_config()?;
        let now = self.config.now;
        let swept = self.sweep.run(
            &mut self.maps,
            now,
            &self.tables.current_generations(),
            self.tables.access_in_force(),
            &self.tables.idle_limits(),
            self.options.flow_capacity,
        )?;
        let ended = self.sweep.take_ended();
        if self.monitor.is_asked() {
            let backends = self.tables.backends_by_index();
            self.monitor.note_ended(&ended, &self.maps, &backends);
        }
        self.monitor.maintain()?;
        let openings = self.tables.openings(&self.maps)?;
        self.limits.note(now, present_span(), &openings);
        self.tables.begin_affinities(&mut self.maps)?;
        if swept {
            self.tables.write_loads(&mut self.maps, self.sweep.active())?;
        }
        self.copy_flows();
        self.maintenances = self.maintenances.wrapping_add(1);
        if self.maintenances.is_multiple_of(VERIFY_EVERY) {
            self.attachments.verify(&mut self.programs)?;
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DatapathError> {
        self.attachments.detach()?;
        hooks::remove_all_pins(&self.options.pins)
    }
}

/// Removes what earlier agents, of any version, left in this network namespace and below the pin directory.
/// Makes no bpf system call, since that may be what the kernel refuses. Returns whether there was anything.
///
/// # Errors
/// When a pin could not be removed.
pub fn remove_leftovers(pins: &Path) -> Result<bool, DatapathError> {
    let filters = attach::sweep(|_, _| false)?;
    let pinned = pins.exists();
    if pinned {
        for version in hooks::versions(pins) {
            clsact::release(&version.join(attach::LINKS))?;
        }
        hooks::remove_all_pins(pins)?;
    }
    Ok(pinned || filters > 0)
}

/// The largest packet that fits into the tunnel on an uplink of a given MTU, bytes.
fn inner_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu.saturating_sub(KEYED_OUTER_LENGTH as u32)).unwrap_or(u16::MAX)
}
