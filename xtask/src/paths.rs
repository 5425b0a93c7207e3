//! Where things are built, and where the lab keeps its data. Depends on nothing else here.

use std::path::{Path, PathBuf};

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR` where it is set, `target` otherwise.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// The linked eBPF programs, which the agent's build includes.
#[must_use]
pub fn ebpf_object() -> PathBuf {
    target().join("ebpf/mesh.o")
}

/// The linked eBPF programs with what measures them.
#[must_use]
pub fn bench_object() -> PathBuf {
    target().join("ebpf/mesh-bench.o")
}

/// The folder of the statically linked programs.
#[must_use]
pub fn static_programs() -> PathBuf {
    target().join("static/x86_64-unknown-linux-gnu/release")
}

/// One of the statically linked programs: `mesh-agent`, `meshctl` or `mesh-testbed`.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    static_programs().join(name)
}

/// What virtual machines need and this machine does not: a kernel, virtme-ng.
#[must_use]
pub fn vm() -> PathBuf {
    target().join("vm")
}

/// The folder for the output of commands whose progress is shown in one line.
#[must_use]
pub fn logs() -> PathBuf {
    target().join("xtask-logs")
}
