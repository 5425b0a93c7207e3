//! The pins of the data path: a folder for each version of the maps, and what the next version keeps of an
//! earlier one's.
//!
//! A map whose layout is unchanged is pinned in the next version's folder as well, so that both versions'
//! programs use it until the earlier ones are gone. The folder of the earlier version stays as it is until
//! then: whatever goes wrong before, its agent can go on with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use aya_obj::{Object, maps::PinningType};
use mesh_ebpf::abi::{Flow, LAYOUTS, VERSION};

use super::{
    super::DatapathError,
    EbpfOptions,
    attach::{CALLED, LINKS},
    earlier::FlowBefore6,
    failed,
};

/// The folder of a version's layouts: an empty folder for each map, named after it and its layout. So an
/// agent that is older than the maps knows which of them it can use.
const LAYOUT_MARKS: &str = "layouts";

/// Maps that refer to each other's entries by index. Both versions' programs use all of them or none: the
/// agent changes them together.
const INDEXED: [&str; 8] = [
    "BACKENDS",
    "BACKEND_COUNTERS",
    "BACKEND_INDEX",
    "BREAKERS",
    "FRONTENDS",
    "LOADS",
    "RING",
    "SERVICES",
];

/// Earlier layouts whose entries can be converted: the map, its layout's number, and the bytes of a value.
/// Before 9, flows had no way to their client.
const CONVERTIBLE: [(&str, u32, u32); 3] = [
    ("FLOWS", 4, size_of::<FlowBefore6>() as u32),
    ("FLOWS", 6, size_of::<Flow>() as u32),
    ("HALF_OPEN", 6, size_of::<Flow>() as u32),
];

/// The maps that this agent's programs need.
pub(super) struct Wanted {
    version: u32,
    shapes: BTreeMap<String, Shape>,
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// See [`LAYOUTS`].
    layout: u32,
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

/// What becomes of an earlier map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is used as it is.
    Kept,
    /// The new one has another size, or refers to others that are not kept: its entries are copied.
    Copied,
    /// It has an earlier layout that this release knows: its entries are converted.
    Converted,
    /// Its entries are written anew, or lost.
    Dropped,
}

impl Wanted {
    /// Reads from an object which maps its programs need.
    pub(super) fn of(object: &[u8], options: &EbpfOptions) -> Result<Self, DatapathError> {
        let object = Object::parse(object).map_err(|error| failed("read the eBPF object", error))?;
        let changed = &options.changed_maps;
        let version = VERSION + u32::from(!changed.is_empty());
        let shapes = object
            .maps
            .into_iter()
            .filter(|(_, map)| map.pinning() == PinningType::ByName)
            .map(|(name, map)| {
                let size = options.map_sizes.iter().find(|(map, _)| *map == name);
                let entries = match (name.as_str(), size) {
                    (_, Some((_, entries))) => *entries,
                    ("FLOWS", None) => options.flow_capacity,
                    ("HALF_OPEN", None) => options.half_open_capacity(),
                    (_, None) => map.max_entries(),
                };
                let shape = Shape {
                    layout: if changed.contains(&name.as_str()) {
                        version
                    } else {
                        layout(&name)
                    },
                    kind: map.map_type(),
                    key: map.key_size(),
                    value: map.value_size(),
                    entries,
                };
                (name, shape)
            })
            .collect();
        Ok(Self { version, shapes })
    }

    /// The name of the folder of this version's pins.
    pub(super) fn folder(&self) -> String {
        format!("v{}", self.version)
    }

    /// Whether every map that a folder has can be used as it is.
    pub(super) fn all_fit(&self, folder: &Path) -> bool {
        let found = self.found(folder);
        self.shapes
            .iter()
            .all(|(name, shape)| found.get(name).is_none_or(|found| found == shape))
    }

    /// What becomes of the maps of a folder.
    pub(super) fn fates(&self, folder: &Path) -> BTreeMap<String, Fate> {
        let found = self.found(folder);
        fates(&self.shapes, &found)
    }

    /// Notes in a folder which layouts its maps have.
    pub(super) fn mark(&self, folder: &Path) -> Result<(), DatapathError> {
        for (name, shape) in &self.shapes {
            let mark = folder.join(LAYOUT_MARKS).join(format!("{name}-{}", shape.layout));
            fs::create_dir_all(&mark)
                .map_err(|error| failed(format!("create the directory {}", mark.display()), error))?;
        }
        Ok(())
    }

    /// The maps that a folder has, of those that are wanted and whose layout is known.
    fn found(&self, folder: &Path) -> BTreeMap<String, Shape> {
        let marks = marks(folder);
        let version = version(folder);
        let names = self.shapes.keys();
        names
            .filter_map(|name| {
                let layout = match marks.get(name) {
                    Some(layout) => *layout,
                    // Of a release that does not mark its maps.
                    None => Some(layout(name)).filter(|layout| (*layout..=VERSION).contains(&version))?,
                };
                let info = MapInfo::from_pin(folder.join(name)).ok()?;
                let shape = Shape {
                    layout,
                    kind: info.map_type().ok()? as u32,
                    key: info.key_size(),
                    value: info.value_size(),
                    entries: info.max_entries(),
                };
                Some((name.clone(), shape))
            })
            .collect()
    }
}

/// Pins maps of a folder in another one as well.
pub(super) fn share<'a>(
    from: &Path,
    to: &Path,
    maps: impl Iterator<Item = &'a String>,
) -> Result<(), DatapathError> {
    for name in maps {
        let pin = to.join(name);
        MapData::from_pin(from.join(name))
            .map_err(|error| failed(format!("open the pinned map {name}"), error))?
            .pin(&pin)
            .map_err(|error| failed(format!("pin {}", pin.display()), error))?;
    }
    Ok(())
}

/// Whether two pins are of the same map.
pub(super) fn is_shared(one: &Path, other: &Path) -> bool {
    let id = |pin: &Path| MapInfo::from_pin(pin).ok().map(|info| info.id());
    id(one).is_some_and(|map| id(other) == Some(map))
}

/// The bytes of a pinned map's values.
pub(super) fn value_size(pin: &Path) -> Option<usize> {
    MapInfo::from_pin(pin).ok().map(|info| info.value_size() as usize)
}

/// Whether programs have been attached by links in a folder.
pub(super) fn has_links(folder: &Path) -> bool {
    fs::read_dir(folder.join(LINKS)).is_ok_and(|mut links| links.next().is_some())
}

/// The version of the maps in a folder, by its name; 0 for another name.
pub(super) fn version(folder: &Path) -> u32 {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let number = name.strip_prefix('v').unwrap_or_default();
    let number = number.split('_').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// A name beside a folder that nothing has. (The bpf file system takes no dots.)
pub(super) fn unused_name(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut names = (1..).map(|number: u32| folder.with_file_name(format!("{name}_{number}")));
    names.find(|path| !path.exists()).unwrap_or_default()
}

fn layout(map: &str) -> u32 {
    let known = LAYOUTS.iter().find(|(name, _)| *name == map);
    known.map_or(VERSION, |(_, layout)| *layout)
}

fn marks(folder: &Path) -> BTreeMap<String, u32> {
    let Ok(entries) = fs::read_dir(folder.join(LAYOUT_MARKS)) else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (map, layout) = name.rsplit_once('-')?;
            Some((map.to_owned(), layout.parse().ok()?))
        })
        .collect()
}

fn fates(wanted: &BTreeMap<String, Shape>, found: &BTreeMap<String, Shape>) -> BTreeMap<String, Fate> {
    let fits = |name: &str| {
        wanted
            .get(name)
            .is_none_or(|shape| found.get(name) == Some(shape))
    };
    let apart: BTreeSet<&str> = if INDEXED.iter().all(|name| fits(name)) {
        BTreeSet::new()
    } else {
        INDEXED.into()
    };
    wanted
        .iter()
        .map(|(name, shape)| {
            let name = name.as_str();
            let fate = match found.get(name) {
                // Programs of either version call their own.
                _ if name == CALLED => Fate::Dropped,
                Some(found) if found == shape && !apart.contains(name) => Fate::Kept,
                Some(found)
                    if (Shape {
                        entries: shape.entries,
                        ..*found
                    }) == *shape =>
                {
                    Fate::Copied
                }
                Some(found) if CONVERTIBLE.contains(&(name, found.layout, found.value)) => Fate::Converted,
                Some(_) | None => Fate::Dropped,
            };
            (name.to_owned(), fate)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layout: u32, value: u32, entries: u32) -> Shape {
        Shape {
            layout,
            kind: 1,
            key: 4,
            value,
            entries,
        }
    }

    fn maps(changed: &[(&str, Shape)]) -> BTreeMap<String, Shape> {
        let mut maps: BTreeMap<_, _> = LAYOUTS
            .iter()
            .map(|(name, _)| ((*name).to_owned(), shape(4, 8, 16)))
            .collect();
        maps.extend(changed.iter().map(|(name, shape)| ((*name).to_owned(), *shape)));
        maps
    }

    fn check(changed: &[(&str, Shape)], expected: &[(&str, Fate)]) {
        let mut fates = fates(&maps(changed), &maps(&[]));
        // Both versions' programs are callable while one takes over from the other.
        assert_eq!(fates.remove(CALLED), Some(Fate::Dropped));
        let other: BTreeMap<&str, Fate> = fates
            .iter()
            .filter(|(_, fate)| **fate != Fate::Kept)
            .map(|(name, fate)| (name.as_str(), *fate))
            .collect();
        assert_eq!(other, expected.iter().copied().collect(), "{changed:?}");
    }

    #[test]
    fn a_map_is_kept_unless_its_layout_or_its_size_has_changed() {
        check(&[], &[]);
        check(
            &[("NEXT_HOPS", shape(5, 12, 16))],
            &[("NEXT_HOPS", Fate::Dropped)],
        );
        check(&[("DROPS", shape(5, 8, 16))], &[("DROPS", Fate::Dropped)]);
        check(&[("FLOWS", shape(4, 8, 32))], &[("FLOWS", Fate::Copied)]);
        // A size that is not what the layout says.
        check(&[("CONFIG", shape(4, 12, 16))], &[("CONFIG", Fate::Dropped)]);
    }

    #[test]
    fn flows_of_an_earlier_release_are_converted() {
        let before = Shape {
            kind: 9,
            ..shape(4, 56, 16)
        };
        let wanted = maps(&[("FLOWS", shape(9, 88, 16))]);
        let fate = |found: Shape| fates(&wanted, &maps(&[("FLOWS", found)]))["FLOWS"];
        assert_eq!(fate(before), Fate::Converted);
        assert_eq!(fate(shape(6, 64, 16)), Fate::Converted);
        assert_eq!(fate(Shape { value: 48, ..before }), Fate::Dropped);
        assert_eq!(fate(Shape { layout: 3, ..before }), Fate::Dropped);
    }

    #[test]
    fn maps_that_refer_to_each_other_are_kept_together() {
        let others = INDEXED.iter().filter(|name| **name != "RING");
        let mut expected: Vec<_> = others.map(|name| (*name, Fate::Copied)).collect();
        expected.push(("RING", Fate::Dropped));
        check(&[("RING", shape(6, 8, 16))], &expected);
    }

    #[test]
    fn a_folders_name_has_its_version() {
        for (name, expected) in [
            ("v5", 5),
            ("v12", 12),
            ("v5_1", 5),
            ("links", 0),
            ("v", 0),
            ("w5", 0),
        ] {
            assert_eq!(
                version(Path::new("/sys/fs/bpf/mesh").join(name).as_path()),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn every_layout_is_of_a_version_that_there_has_been() {
        for (name, layout) in LAYOUTS {
            assert!((4..=VERSION).contains(&layout), "{name} {layout}");
        }
    }
}
