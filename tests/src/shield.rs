//! Runs a command without the bpf system call, as container runtimes and hardened units do by seccomp.

use std::{
    collections::BTreeMap, convert::Infallible, ffi::OsString, os::unix::process::CommandExt,
    process::Command,
};

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Becomes the command, which is refused `bpf` with `EPERM`, and all that it starts too.
///
/// # Errors
/// When the kernel takes no filter, or the command cannot be started.
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
    // Of this thread, which is the one that becomes the command.
    seccompiler::apply_filter(&filter).context("the kernel takes no seccomp filter")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("could not start {}", program.display()))
}
