//! What a lab has started, on disk, so that any later command can find it or take it down. Depends on
//! `process` and `topology` only.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{process::Process, topology::Topology};

/// Where labs are registered: on the host, and hidden from the nodes, which have a `/run` of their own.
const REGISTRY: &str = "/run/mesh-lab";

/// Addresses of lab L are 10.99.L.0/24.
const SUBNETS: std::ops::RangeInclusive<u8> = 1..=250;

/// One lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// The third byte of its addresses.
    pub subnet: u8,
    /// How its nodes are connected.
    #[serde(default)]
    pub topology: Topology,
    /// Where its data is: engines' data roots and logs.
    pub data: PathBuf,
    /// The process that brought it up.
    pub owner: Process,
    /// What has been started, in order.
    pub spaces: Vec<SpaceRecord>,
}

/// The processes that hold the namespaces of one node, of the client, or of the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpaceRecord {
    /// `node1`, `client` or `wire`.
    pub name: String,
    /// The `unshare` outside.
    pub holder: Process,
    /// The first process inside; everything inside ends with it.
    pub init: Process,
}

impl State {
    /// Registers a new lab under a subnet that no other has.
    ///
    /// # Errors
    /// When the name is taken or no subnet is free.
    pub fn register(name: &str, data: PathBuf, topology: Topology) -> Result<Self> {
        check_name(name)?;
        fs::create_dir_all(REGISTRY).with_context(|| format!("could not create {REGISTRY}"))?;
        let _lock = lock()?;
        if Self::load(name)?.is_some() {
            bail!("a lab named `{name}` is up; take it down with `cargo xtask lab down --name {name}`");
        }
        let taken: Vec<u8> = Self::list()?.iter().map(|state| state.subnet).collect();
        let Some(subnet) = SUBNETS.into_iter().find(|subnet| !taken.contains(subnet)) else {
            bail!("there are {} labs up already; take one down first", taken.len());
        };
        let owner = Process::of(std::process::id().try_into().context("the pid is out of range")?)?;
        let state = Self {
            name: name.to_owned(),
            subnet,
            topology,
            data,
            owner,
            spaces: Vec::new(),
        };
        state.save()?;
        Ok(state)
    }

    /// Reads a lab's state; `None` when it is not up.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn load(name: &str) -> Result<Option<Self>> {
        let path = folder(name).join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged; look at it and remove it by hand", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
        }
    }

    /// All labs that are registered.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub fn list() -> Result<Vec<Self>> {
        let entries = match fs::read_dir(REGISTRY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("could not read {REGISTRY}")),
        };
        let mut states = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("could not read {REGISTRY}"))?;
            if let Some(name) = entry.file_name().to_str()
                && let Some(state) = Self::load(name)?
            {
                states.push(state);
            }
        }
        states.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(states)
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let folder = folder(&self.name);
        fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
        let path = folder.join("state.json");
        let draft = folder.join("state.json.new");
        let bytes = serde_json::to_vec_pretty(self).context("could not write the lab's state as JSON")?;
        fs::write(&draft, bytes).with_context(|| format!("could not write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("could not replace {}", path.display()))
    }

    /// Forgets the lab.
    ///
    /// # Errors
    /// When its folder cannot be removed.
    pub fn forget(&self) -> Result<()> {
        remove_folder(&folder(&self.name))?;
        // Fails while another lab is registered, as it should.
        let _ = fs::remove_dir(REGISTRY);
        Ok(())
    }

    /// The space of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn space(&self, name: &str) -> Result<&SpaceRecord> {
        self.spaces
            .iter()
            .find(|space| space.name == name)
            .with_context(|| {
                let names: Vec<&str> = self.spaces.iter().map(|space| space.name.as_str()).collect();
                format!("lab `{}` has no `{name}`; it has {}", self.name, names.join(", "))
            })
    }

    /// The names of the nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        self.spaces
            .iter()
            .map(|space| space.name.as_str())
            .filter(|name| name.starts_with("node"))
            .collect()
    }
}

/// Where a lab's own small files are.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    Path::new(REGISTRY).join(name)
}

/// Removes a folder and all in it; there being none is fine.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The name becomes part of paths and of cgroups.
fn check_name(name: &str) -> Result<()> {
    let fine = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !fine {
        bail!("`{name}` is no name for a lab: use 1 to 32 of a-z, 0-9 and -");
    }
    Ok(())
}

fn lock() -> Result<Flock<fs::File>> {
    // The folder itself is what is locked: no file is left over.
    let file = fs::File::open(REGISTRY).with_context(|| format!("could not open {REGISTRY}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("could not lock {REGISTRY}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for name in ["", "..", "a/b", "Mesh", "a b", &"a".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("mesh-2").is_ok());
    }

    #[test]
    fn a_folder_that_is_not_there_counts_as_removed() {
        assert!(remove_folder(Path::new("/run/mesh-lab-never-was")).is_ok());
    }
}
