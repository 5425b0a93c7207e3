//! `mesh-agent clean`: removes everything that agents have left on this node, whatever data path they used.
//! Needs neither Docker nor a kernel that accepts our programs.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use clap::Args;
use mesh_support::error_chain;

use super::{
    datapath_factory::{PINS, run_folder},
    drains,
    preflight::{self, PreflightError},
};
use crate::{
    admin::DEFAULT_SOCKET,
    datapath::{
        ebpf,
        ipvs::{self, IpvsOptions},
    },
    mesh0::{Mesh0, Mesh0Error},
};

/// The options of `mesh-agent clean`: where agents leave something.
#[derive(Clone, Debug, Args)]
pub struct CleanOptions {
    /// The agent's admin socket; its folder records what IPVS has changed.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub admin_socket: PathBuf,
    /// Mount point of the bpf file system.
    #[arg(long, env = "MESH_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Folder of the kernel's settings, some of which are changed while IPVS is used.
    #[arg(long, env = "MESH_SYSCTLS", value_name = "PATH", default_value = "/proc/sys")]
    pub sysctls: PathBuf,
}

/// The names of what was found and removed.
pub type Cleaned = Vec<&'static str>;

/// Something of the mesh may be left on the node.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// An agent runs, or its folders cannot be locked.
    #[error("cannot clean this node")]
    Preflight(#[from] PreflightError),
    /// Some of it could not be removed.
    #[error("cannot remove everything: {}; run it again as root once that is mended", .0.join("; "))]
    Left(Vec<String>),
}

/// Removes programs, maps, pins, queueing disciplines, mesh0, virtual services and nftables tables of the
/// mesh, and puts back the kernel's settings. May be repeated. What is not the mesh's own stays. Every part
/// is tried, whether or not others fail.
///
/// # Errors
/// When an agent runs on this node, or something could not be removed.
pub async fn clean(options: &CleanOptions) -> Result<Cleaned, CleanError> {
    let folder = run_folder(&options.admin_socket);
    let is_new = !folder.exists();
    let _run_lock = preflight::lock_run_folder(&options.admin_socket)?;
    let _pins_lock = options
        .bpffs
        .is_dir()
        .then(|| preflight::lock(&options.bpffs))
        .transpose()?;
    let mut found = Vec::new();
    let mut left = Vec::new();
    let mut tried = |what, removed: Result<bool, String>| match removed {
        Ok(true) => found.push(what),
        Ok(false) => {}
        Err(error) => left.push(format!("{what}: {error}")),
    };

    // What redirects connections goes first, then the device that they are redirected to.
    let ebpf = ebpf::remove_leftovers(&options.bpffs.join(PINS));
    tried(
        "eBPF programs and maps",
        ebpf.map_err(|error| error_chain(&error)),
    );
    tried("the device mesh0", remove_mesh0(&options.sysctls).await);
    let ipvs = ipvs::remove_leftovers(IpvsOptions {
        run_directory: folder.to_owned(),
        sysctls: options.sysctls.clone(),
        ..IpvsOptions::default()
    });
    tried(
        "IPVS services, nftables tables and changed settings",
        ipvs.map_err(|error| error_chain(&error)),
    );
    tried(
        "the record of drained replicas",
        drains::remove_record(&options.admin_socket),
    );
    tried("the admin socket", remove_socket(&options.admin_socket));
    if !left.is_empty() {
        return Err(CleanError::Left(left));
    }
    if is_new || !found.is_empty() {
        // Other programs' files keep the folder.
        let _ = fs::remove_dir(folder);
    }
    Ok(found)
}

async fn remove_mesh0(sysctls: &Path) -> Result<bool, String> {
    let removed = match Mesh0::new(sysctls) {
        Ok(mesh0) => mesh0.remove().await,
        Err(error) => Err(error),
    };
    match removed {
        Ok(removed) => Ok(removed),
        // Another program's.
        Err(Mesh0Error::NameTaken(_)) => Ok(false),
        Err(error) => Err(error_chain(&error)),
    }
}

/// Removes the socket of an agent that was killed: none runs, as its folder is locked.
fn remove_socket(path: &Path) -> Result<bool, String> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("look at {}: {error}", path.display())),
    }
    fs::remove_file(path)
        .map(|()| true)
        .map_err(|error| format!("remove {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path) -> CleanOptions {
        CleanOptions {
            admin_socket: folder.join("run/admin.sock"),
            bpffs: folder.join("bpf"),
            sysctls: folder.join("sys"),
        }
    }

    #[test]
    fn a_running_agents_node_is_not_cleaned() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let _agent = preflight::lock_run_folder(&options.admin_socket).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(clean(&options)).unwrap_err();
        let text = error_chain(&error);
        assert!(text.contains("another agent is running on this node"), "{text}");
    }
}
