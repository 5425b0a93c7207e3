//! `cargo xtask setup`: installs what a command needs, from the table of `programs`, and only what is
//! missing. Depends on `command`, `programs` and, for virtual machines' kernels, `vm::kernel`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, command, exists},
    paths,
    programs::{self, EBPF_PACKAGES, LIBRARIES, LINKER_PACKAGES, Need},
    vm::kernel,
};

/// What boots a kernel over this machine's file system, from PyPI.
const VIRTME: &str = "virtme-ng==1.42";

/// Which Rust builds the eBPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EbpfToolchain {
    /// rustup's nightly with `rust-src`.
    RustupNightly,
    /// Debian's `/usr/bin/cargo` and `/usr/bin/rustc` with `rust-web-src`.
    Debian,
}

impl EbpfToolchain {
    /// Finds the tool chain: rustup's nightly where it has the source, Debian's otherwise.
    #[must_use]
    pub fn find() -> Self {
        let sysroot = command::run(&mut clean(command([
            "rustup", "run", "nightly", "rustc", "--print", "sysroot",
        ])));
        match sysroot {
            Ok(path)
                if Path::new(&path)
                    .join("lib/rustlib/src/rust/library/core")
                    .is_dir() =>
            {
                Self::RustupNightly
            }
            _ => Self::Debian,
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::RustupNightly => "rustup's nightly with rust-src",
            Self::Debian => "Debian's cargo and rustc (/usr/bin) with rust-web-src",
        }
    }
}

/// Removes the variables that `cargo run` and rustup set for their children, which would mislead another
/// cargo.
#[must_use]
pub fn clean(mut command: std::process::Command) -> std::process::Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let misleads = [
            "CARGO",
            "RUSTUP_TOOLCHAIN",
            "RUSTC",
            "RUSTFLAGS",
            "RUST_RECURSION_COUNT",
            "RUSTDOC",
        ];
        let belongs_to_person = matches!(
            &*text,
            "CARGO_HOME" | "CARGO_INCREMENTAL" | "CARGO_NET_OFFLINE" | "CARGO_HTTP_CAINFO"
        ) || text.starts_with("CARGO_PROFILE")
            || text.starts_with("CARGO_REGISTR")
            || text.starts_with("CARGO_SOURCE")
            || text.starts_with("CARGO_HTTP");
        if misleads.iter().any(|prefix| text.starts_with(prefix)) && !belongs_to_person {
            command.env_remove(&name);
        }
    }
    // rustup puts its tool chain's library folder first; another rustc would load the wrong compiler.
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// What the set-up of packages leaves to do. The linker takes a minute to build, beside which other things
/// are built.
#[derive(Debug, Default)]
#[must_use]
pub struct Linker {
    is_missing: bool,
}

/// Installs everything that any command needs and is missing, but for what virtual machines and measurements
/// need.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn run() -> Result<()> {
    packages(&[Need::Build, Need::Lab, Need::Tests])?.install()
}

/// Installs the Debian packages that are needed and missing, and says whether the linker of eBPF programs is.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn packages(needs: &[Need]) -> Result<Linker> {
    let toolchain = EbpfToolchain::find();
    let packages = missing_packages(needs, toolchain);
    let linker = Linker {
        is_missing: needs.contains(&Need::Build) && !linker_is_installed(),
    };
    if packages.is_empty() {
        println!("  no Debian packages to install");
    } else {
        println!("  will install Debian packages: {}", packages.join(" "));
    }
    if linker.is_missing {
        println!("  will install by cargo: bpf-linker");
    }
    if needs.contains(&Need::Build) {
        println!("  eBPF programs are built by {}", toolchain.describe());
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    Ok(linker)
}

impl Linker {
    /// Builds and installs the linker, where it is missing.
    ///
    /// # Errors
    /// When it does not build.
    pub fn install(self) -> Result<()> {
        if !self.is_missing {
            return Ok(());
        }
        let prefix = command::run(&mut command(["llvm-config-22", "--prefix"]))?;
        let mut install = clean(command(["cargo", "install", "bpf-linker", "--locked"]));
        install
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", prefix)
            // It links two small programs: its own speed does not matter, and its debug information is never
            // read.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        command::progress("bpf-linker", "bpf-linker", &mut install)
    }
}

/// Installs what is missing for virtual machines: qemu, virtme-ng in a Python environment of its own, and,
/// where it is asked for, Debian's kernel beside it. The last two are kept in the target folder.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn vm(with_kernel: bool) -> Result<()> {
    let packages = missing_packages(&[Need::Vm], EbpfToolchain::RustupNightly);
    let environment = paths::vm().join("venv");
    let virtme = !environment.join("bin/vng").is_file();
    let kernel = with_kernel && kernel::unpacked(kernel::Debian::Release)?.is_none();
    if !packages.is_empty() {
        println!("  will install Debian packages: {}", packages.join(" "));
    }
    if virtme {
        println!("  will install by pip into {}: {VIRTME}", environment.display());
    }
    if kernel {
        println!("  will unpack Debian's kernel into {}", paths::vm().display());
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    } else if kernel {
        // An old list names versions that are gone.
        update_lists()?;
    }
    if virtme {
        install_virtme(&environment)?;
    }
    if kernel {
        kernel::unpack(kernel::Debian::Release)?;
    }
    Ok(())
}

fn install_virtme(environment: &Path) -> Result<()> {
    command::run(command(["python3", "-m", "venv", "--clear"]).arg(environment))?;
    let mut install = command([environment.join("bin/pip")]);
    install.args(["install", "--quiet", "--disable-pip-version-check", VIRTME]);
    command::progress("virtme-ng", "virtme-ng", &mut install)
}

fn missing_packages(needs: &[Need], toolchain: EbpfToolchain) -> Vec<&'static str> {
    let mut packages: Vec<&str> = programs::missing(needs).map(|program| program.package).collect();
    let needed = LIBRARIES
        .iter()
        .filter(|library| library.needs.iter().any(|need| needs.contains(need)))
        .map(|library| library.package);
    let mut needed: Vec<&str> = needed.collect();
    if needs.contains(&Need::Build) {
        if toolchain == EbpfToolchain::Debian {
            needed.extend(EBPF_PACKAGES);
        }
        if !linker_is_installed() {
            needed.extend(LINKER_PACKAGES);
        }
    }
    packages.extend(needed.into_iter().filter(|package| !is_installed(package)));
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn linker_is_installed() -> bool {
    exists("bpf-linker") || cargo_bin("bpf-linker")
}

fn is_installed(package: &str) -> bool {
    command::run(&mut command([
        "dpkg-query",
        "--show",
        "--showformat=${Status}",
        package,
    ]))
    .is_ok_and(|status| status.ends_with("ok installed"))
}

fn cargo_bin(program: &str) -> bool {
    cargo_home().join("bin").join(program).is_file()
}

/// Where cargo keeps what it installs.
#[must_use]
pub fn cargo_home() -> std::path::PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo"),
        Into::into,
    )
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!(
            "installing packages needs root; run `apt-get install {}` yourself, or this as root",
            packages.join(" ")
        );
    }
    let _guard = NoServices::new()?;
    update_lists()?;
    let mut install = command(["apt-get", "install", "--yes", "--no-install-recommends"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    command::progress("Debian packages", "apt-install", &mut install)
}

fn update_lists() -> Result<()> {
    let mut update = command(["apt-get", "update"]);
    command::progress(
        "package lists",
        "apt-update",
        update.env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Keeps packages from starting their services (an engine or a Prometheus on the host) while it lives.
struct NoServices {
    path: &'static Path,
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            // An administrator's policy; it stays.
            return Ok(Self { path, ours: false });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("could not write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("could not make {} executable", path.display()))?;
        Ok(Self { path, ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(self.path);
        }
    }
}
