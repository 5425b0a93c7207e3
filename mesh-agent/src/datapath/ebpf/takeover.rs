//! Taking over from programs that use other maps: the new maps and programs are complete before the first
//! hook changes, open connections go on, and what was before is removed last.
//!
//! Killed before the first link is pinned, an agent leaves the earlier data path as it was; killed later, the
//! next one goes on from there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use mesh_ebpf::{
    abi::{Backend, BackendKey, Config, Dialled, Flow, FlowKey, FlowRecord, FrontendKey, Keys, Service},
    bytes::Be32,
};
use mesh_support::error_chain;
use tracing::{info, warn};

use super::{
    super::{DatapathError, EarlierServes},
    batch,
    earlier::FlowBefore6,
    failed,
    hooks::{remove_pins, versions},
    pins::{self, Fate, Wanted},
};

const FLOWS: &str = "FLOWS";
const HALF_OPEN: &str = "HALF_OPEN";
/// Without these, an open connection is not known any more.
const FLOWS_DEPEND_ON: [&str; 4] = [FLOWS, "BACKENDS", "BACKEND_INDEX", "SERVICES"];

/// What other agents have left, until it is removed.
#[derive(Default)]
pub(super) struct Takeover {
    /// This agent's folder.
    own: PathBuf,
    /// The folders of others, the one whose maps are kept first.
    sources: Vec<PathBuf>,
    /// The folder that was this agent's own until its maps did not fit any more.
    moved: Option<PathBuf>,
    fates: BTreeMap<String, Fate>,
    /// The flow tables of the sources whose entries this agent can read, and what becomes of those.
    flow_tables: Vec<(PathBuf, &'static str, Fate)>,
    /// Whether programs of this agent's folder are attached, so that its entries are newer.
    switched: bool,
    flows: u64,
}

impl Takeover {
    /// Prepares this agent's folder: the maps that can be kept are in it.
    pub(super) fn begin(root: &Path, wanted: &Wanted) -> Result<Self, DatapathError> {
        let own = root.join(wanted.folder());
        let mut sources = versions(root);
        sources.retain(|path| *path != own);
        // The latest is the one to take over from.
        sources.sort_by_key(|path| std::cmp::Reverse((pins::has_links(path), pins::version(path))));
        let mut moved = None;
        if own.exists() {
            if !sources.is_empty() && !pins::has_links(&own) {
                // Of an attempt that was cut short; what it was to take over is still as it was.
                remove_pins(&own)?;
            } else if !wanted.all_fit(&own) {
                let aside = pins::unused_name(&own);
                fs::rename(&own, &aside)
                    .map_err(|error| failed(format!("move the pins to {}", aside.display()), error))?;
                sources.insert(0, aside.clone());
                moved = Some(aside);
            }
        }
        let mut takeover = Self {
            switched: pins::has_links(&own),
            own,
            sources,
            moved,
            fates: BTreeMap::new(),
            flow_tables: Vec::new(),
            flows: 0,
        };
        match takeover.prepare(wanted) {
            Ok(()) => Ok(takeover),
            Err(error) => Err(takeover.give_up(error)),
        }
    }

    fn prepare(&mut self, wanted: &Wanted) -> Result<(), DatapathError> {
        let own = &self.own;
        fs::create_dir_all(own)
            .map_err(|error| failed(format!("create the pin directory {}", own.display()), error))?;
        for source in self.sources.iter().rev() {
            self.fates = wanted.fates(source);
            for name in [HALF_OPEN, FLOWS] {
                match self.fates.get(name) {
                    None | Some(Fate::Dropped) => {}
                    Some(fate) => self.flow_tables.push((source.join(name), name, *fate)),
                }
            }
        }
        let Some(source) = self.sources.first().filter(|_| !self.switched) else {
            return Ok(());
        };
        let kept = self.fates.iter().filter(|(_, fate)| **fate == Fate::Kept);
        pins::share(source, own, kept.map(|(name, _)| name))
    }

    /// The folder of this agent's pins.
    pub(super) fn own(&self) -> &Path {
        &self.own
    }

    /// The folders of the data path that is replaced; none when there is nothing to replace.
    pub(super) fn sources(&self) -> &[PathBuf] {
        &self.sources
    }

    /// Whether there is something to replace.
    pub(super) fn is_pending(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Copies what indexes mean, and the settings, to the maps that could not be kept. No program uses those
    /// yet.
    pub(super) fn copy_tables(&self) -> Result<(), DatapathError> {
        let Some(source) = self.sources.first().filter(|_| !self.switched) else {
            return Ok(());
        };
        for (name, fate) in &self.fates {
            if *fate != Fate::Copied {
                continue;
            }
            let (from, to) = (source.join(name), self.own.join(name));
            match name.as_str() {
                "CONFIG" => copy_array::<Config>(&from, &to),
                "KEYS" => copy_array::<Keys>(&from, &to),
                "KEYED" => copy_array::<u64>(&from, &to),
                "BACKENDS" => copy_array::<Backend>(&from, &to),
                "BACKEND_INDEX" => copy_hash::<BackendKey, u32>(&from, &to, Existing::Replaced),
                "PEER_INDEX" => copy_hash::<Be32, u32>(&from, &to, Existing::Replaced),
                "FRONTENDS" => copy_hash::<FrontendKey, u32>(&from, &to, Existing::Replaced),
                "SERVICES" => copy_hash::<u32, Service>(&from, &to, Existing::Replaced),
                "DIALLED" => copy_hash::<u64, Dialled>(&from, &to, Existing::Replaced),
                // Follows, as late as possible, or is written anew.
                _ => Ok(0),
            }
            .map_err(|error| failed(format!("copy {name}"), error))?;
        }
        let named = |fate| {
            let of_fate = self.fates.iter().filter(move |(_, of_map)| **of_map == fate);
            of_fate
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        info!(
            from = %source.display(),
            kept = named(Fate::Kept),
            copied = named(Fate::Copied),
            converted = named(Fate::Converted),
            renewed = named(Fate::Dropped),
            "taking over from a data path with other maps"
        );
        let is_lost = |name: &&&str| self.fates.get(**name) == Some(&Fate::Dropped);
        if let Some(map) = FLOWS_DEPEND_ON.iter().find(is_lost) {
            warn!(
                map,
                "this map has a layout that this release does not know: open connections are lost"
            );
        }
        Ok(())
    }

    /// Copies the flows that are in other tables than this agent's. Before the first hook has changed, theirs
    /// are newer; then only what is missing is added.
    pub(super) fn copy_flows(&mut self) -> Result<(), DatapathError> {
        let existing = if self.switched {
            Existing::Kept
        } else {
            Existing::Replaced
        };
        for (from, name, fate) in &self.flow_tables {
            let to = self.own.join(name);
            if pins::is_shared(from, &to) {
                continue;
            }
            let copied = match fate {
                Fate::Converted if pins::value_size(from) == Some(size_of::<FlowBefore6>()) => {
                    convert_hash(from, &to, existing, |_: &FlowKey, flow: &FlowBefore6| {
                        FlowRecord::from(Flow::from(*flow))
                    })
                }
                Fate::Converted => convert_hash(from, &to, existing, |_: &FlowKey, flow: &Flow| {
                    FlowRecord::from(*flow)
                }),
                Fate::Kept | Fate::Copied | Fate::Dropped => {
                    copy_hash::<FlowKey, FlowRecord>(from, &to, existing)
                }
            };
            self.flows += copied.map_err(|error| failed(format!("copy {name}"), error))?;
        }
        Ok(())
    }

    /// Notes that hooks change from now on.
    pub(super) fn switch(&mut self) {
        self.switched = true;
    }

    /// Removes what has been replaced, once this agent's programs are everywhere.
    pub(super) fn finish(&mut self) -> Result<(), DatapathError> {
        if !self.is_pending() {
            return Ok(());
        }
        self.copy_flows()?;
        for source in &self.sources {
            remove_pins(source)?;
        }
        self.sources.clear();
        self.flow_tables.clear();
        info!(flows = self.flows, "the earlier data path has been replaced");
        Ok(())
    }

    /// Removes what was prepared, if no hook has changed. What was to be replaced serves on.
    pub(super) fn give_up(self, error: DatapathError) -> DatapathError {
        if self.switched {
            return error;
        }
        let serves = self.sources.iter().any(|source| pins::has_links(source));
        if let Err(error) = remove_pins(&self.own) {
            warn!(
                error = error_chain(&error),
                "could not remove the pins of a failed attempt"
            );
        }
        if let Some(moved) = &self.moved
            && let Err(error) = fs::rename(moved, &self.own)
        {
            warn!(%error, "could not move the pins back");
        }
        if serves {
            return DatapathError {
                operation: "take over the data path of an earlier release, which goes on serving".to_owned(),
                source: EarlierServes(error).into(),
            };
        }
        if let Some(root) = self.own.parent() {
            let _ = fs::remove_dir(root);
        }
        error
    }
}

/// What happens to an entry that the target has already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Replaced,
    Kept,
}

type CopyError = Box<dyn std::error::Error + Send + Sync>;

/// Copies entries; returns how many. Those that find no room are lost.
fn copy_hash<K: Pod, V: Pod>(from: &Path, to: &Path, existing: Existing) -> Result<u64, CopyError> {
    convert_hash(from, to, existing, |_: &K, value: &V| *value)
}

/// The same with entries that have another type.
fn convert_hash<K: Pod, E: Pod, V: Pod>(
    from: &Path,
    to: &Path,
    existing: Existing,
    convert: impl Fn(&K, &E) -> V,
) -> Result<u64, CopyError> {
    let from: HashMap<MapData, K, E> = open(from)?.try_into()?;
    let mut to: HashMap<MapData, K, V> = open(to)?.try_into()?;
    let flags = match existing {
        Existing::Replaced => 0,
        Existing::Kept => BPF_NOEXIST,
    };
    let mut copied = 0;
    batch::for_each(&from, |key, value| {
        copied += u64::from(to.insert(key, convert(key, value), flags).is_ok());
    })?;
    Ok(copied)
}

/// Copies the values that both have room for.
fn copy_array<V: Pod>(from: &Path, to: &Path) -> Result<u64, CopyError> {
    let from: Array<MapData, V> = open(from)?.try_into()?;
    let mut to: Array<MapData, V> = open(to)?.try_into()?;
    let length = from.len().min(to.len());
    for index in 0..length {
        to.set(index, from.get(&index, 0)?, 0)?;
    }
    Ok(length.into())
}

/// `linux/bpf.h`: only if there is no entry yet.
const BPF_NOEXIST: u64 = 1;

fn open(pin: &Path) -> Result<Map, CopyError> {
    Ok(Map::from_map_data(MapData::from_pin(pin)?)?)
}
