//! `cargo xtask build`: the eBPF programs, then the static programs that carry them. Depends on `setup`
//! for the tool chain.

use std::{fs, path::Path, process::Command, thread};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, progress},
    paths,
    setup::{EbpfToolchain, Linker, cargo_home, clean},
};

/// How the eBPF programs are compiled and linked.
const EBPF_FLAGS: &[&str] = &[
    "-C",
    "linker=bpf-linker",
    "-C",
    "target-cpu=v3",
    "-C",
    "target-feature=+allows-misaligned-mem-access",
    "-C",
    "link-arg=--btf",
    "-C",
    "debuginfo=2",
    "--cfg",
    "bpf_target_arch=\"x86_64\"",
];

/// Where the static programs run: anywhere, an empty container included.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds everything, and installs the linker of eBPF programs first where it is missing.
///
/// # Errors
/// When a build fails; with the end of its output.
pub fn run(linker: Linker) -> Result<()> {
    if paths::ebpf_object().is_file() {
        linker.install()?;
        ebpf()?;
        return static_programs();
    }
    // The first build takes minutes: what the agent depends on is compiled meanwhile, and only the agent
    // waits.
    let given_up = paths::ebpf_object().with_extension("failed");
    let _ = fs::remove_file(&given_up);
    thread::scope(|scope| {
        let object = scope.spawn(|| {
            let outcome = linker.install().and_then(|()| ebpf());
            if outcome.is_err() {
                // The agent's build script ends its wait by this file.
                let _ = fs::create_dir_all(given_up.parent().unwrap_or(&given_up));
                let _ = fs::write(&given_up, "");
            }
            outcome
        });
        let programs = static_programs_after_ebpf();
        match object.join() {
            Ok(outcome) => outcome.and(programs),
            Err(_) => bail!("the thread that builds the eBPF programs panicked"),
        }
    })
}

/// Builds the eBPF programs; the result is [`paths::ebpf_object`].
///
/// # Errors
/// When the build fails.
pub fn ebpf() -> Result<()> {
    ebpf_object("programs", "eBPF programs", &paths::ebpf_object())
}

/// Builds the eBPF programs with what measures them; the result is [`paths::bench_object`].
///
/// # Errors
/// When the build fails.
pub fn ebpf_bench() -> Result<()> {
    ebpf_object("bench", "eBPF programs to measure", &paths::bench_object())
}

fn ebpf_object(feature: &str, title: &str, object: &Path) -> Result<()> {
    let toolchain = EbpfToolchain::find();
    let target = paths::target().join("ebpf");
    let mut build = match toolchain {
        EbpfToolchain::Debian => {
            let mut build = clean(command(["/usr/bin/cargo"]));
            build.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            build
        }
        EbpfToolchain::RustupNightly => clean(command(["rustup", "run", "nightly", "cargo"])),
    };
    build
        .args([
            "build",
            "--package",
            "mesh-ebpf",
            "--bin",
            "mesh",
            "--features",
            feature,
            "--profile",
            "ebpf",
        ])
        .args([
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--target-dir",
        ])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", EBPF_FLAGS.join("\u{1f}"))
        .env("PATH", path_with_cargo_bin()?)
        .current_dir(paths::workspace());
    progress(
        &format!("{title}, by {}", toolchain.describe()),
        "ebpf",
        &mut build,
    )?;
    let built = target.join("bpfel-unknown-none/ebpf/mesh");
    // BTF is made from the debug information, which is not read afterwards; it is three quarters of the
    // object, and the agent carries that.
    let stripped = built.with_extension("stripped");
    let mut strip = command(["llvm-objcopy-22", "--strip-debug"]);
    strip.arg(&built).arg(&stripped);
    crate::command::run(&mut strip)
        .context("the debug information cannot be taken out; `cargo xtask setup` installs what does it")?;
    // Only a changed object makes the agent's build begin anew.
    let bytes = fs::read(&stripped).with_context(|| format!("could not read {}", stripped.display()))?;
    if fs::read(object).ok().as_deref() != Some(bytes.as_slice()) {
        // Whole at once: a build may be waiting for it.
        let draft = object.with_extension("new");
        fs::write(&draft, bytes).with_context(|| format!("could not write {}", draft.display()))?;
        fs::rename(&draft, object).with_context(|| format!("could not create {}", object.display()))?;
    }
    Ok(())
}

/// Builds `mesh-agent` and the test server, linked statically, and links `meshctl` to the former, which is
/// both.
///
/// # Errors
/// When the build fails.
pub fn static_programs() -> Result<()> {
    build_static(&mut static_build())
}

/// The same beside the build of the eBPF programs, which the agent's build script waits for.
fn static_programs_after_ebpf() -> Result<()> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut build = static_build();
    // One job is the script that waits.
    build.args(["--jobs", &(processors + 1).to_string()]);
    build_static(build.env("MESH_EBPF_OBJECT_AWAITED", "1"))
}

fn static_build() -> Command {
    let mut build = cargo(["build", "--release", "--target", STATIC_TARGET]);
    build.args([
        "--package",
        "mesh-agent",
        "--package",
        "mesh-tests",
        "--bin",
        "mesh-agent",
        "--bin",
        "mesh-testbed",
        "--target-dir",
    ]);
    build
        .arg(paths::target().join("static"))
        // Equal functions are kept once, which saves a twentieth of the image.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,--icf=all"].join("\u{1f}"),
        );
    build
}

fn build_static(build: &mut Command) -> Result<()> {
    progress("mesh-agent, meshctl and the test server, static", "static", build)?;
    let link = paths::program("meshctl");
    let failed = || format!("could not make {} a link to mesh-agent", link.display());
    if fs::read_link(&link).ok().as_deref() != Some(Path::new("mesh-agent")) {
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(failed);
            }
            _ => std::os::unix::fs::symlink("mesh-agent", &link).with_context(failed)?,
        }
    }
    Ok(())
}

/// The workspace's own cargo, with the location of the eBPF programs.
pub fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = clean(command(["cargo"]));
    cargo
        .args(arguments)
        .env("MESH_EBPF_OBJECT", paths::ebpf_object())
        .current_dir(paths::workspace());
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    cargo
}

fn path_with_cargo_bin() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(cargo_home().join("bin")).chain(std::env::split_paths(&path)))
        .context("the PATH cannot be extended")
}
