//! Runs a command without the bpf system call, as container runtimes and hardened units do by seccomp.

use std::{
    collections::BTreeMap, convert::Infallible, ffi::OsString, os::unix::process::CommandExt,
    process::Command,
};

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Becomes the command, for which, as for everything it starts, `bpf` fails with `EPERM`.
///
/// # Errors
/// When the kernel refuses the filter, or the command cannot be started.
pub fn without_bpf(command: &[OsString]) -> Result<Infallible> {
    let (program, arguments) = command.split_first().context("no command to run")?;
    let architecture = std::env::consts::ARCH
        .try_into()
        .context("no seccomp filters for this architecture")?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_bpf, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        architecture,
    );
    let filter: BpfProgram = filter
        .and_then(TryInto::try_into)
        .context("could not compile the filter")?;
    // Applies to this thread, the one that becomes the command.
    seccompiler::apply_filter(&filter).context("the kernel refuses the seccomp filter")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("could not start {}", program.display()))
}
