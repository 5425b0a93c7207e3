//! Executes the program that the record names, in this process: pid, arguments and environment stay, so that
//! a service manager or a container sees one agent. Call it from the main thread before starting any other.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use mesh_support::error_chain;
use nix::unistd::alarm;
use tracing::{error, info, warn};

use super::{Digest, ProgramError, Programs, TRIAL};

/// Environment variable with the executed program's digest, so that it does not execute itself again.
const PROGRAM: &str = "MESH_AGENT_PROGRAM";
/// Environment variable with the path of the installed program, to go back to.
const INSTALLED: &str = "MESH_AGENT_INSTALLED";
/// This process's own program, even if its file was replaced.
const OWN: &str = "/proc/self/exe";
/// Pause between two attempts of one program.
const PAUSE: Duration = Duration::from_secs(1);
/// A program that hangs before it can check its own deadline is killed by SIGALRM this much after it.
const LAST_RESORT: Duration = Duration::from_secs(10);

/// How this process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Without a deadline.
    Proven,
    /// On trial, for [`TRIAL`].
    OnTrial,
}

/// Executes the program that the record names; returns if that is this one.
#[must_use]
pub(super) fn start(folder: &Path) -> Start {
    let programs = match Programs::open(folder) {
        Ok(programs) => programs,
        Err(error) => {
            warn!(error = error_chain(&error), "running the installed program");
            return Start::Proven;
        }
    };
    if let Some(own) = own_digest() {
        let record = programs.record();
        return match record.trial.is_some() && record.current.as_ref() == Some(&own) {
            true => Start::OnTrial,
            false => Start::Proven,
        };
    }
    execute_current(&programs);
    Start::Proven
}

/// Executes the program that the record names next: a newly deployed one, or after a failed attempt the same
/// one again or the previous one.
///
/// # Errors
/// When not even the installed program can be executed.
pub(super) fn again(folder: &Path) -> Result<std::convert::Infallible, ProgramError> {
    let programs = Programs::open(folder)?;
    execute_current(&programs);
    let installed = env::var_os(INSTALLED).map_or_else(|| PathBuf::from(OWN), PathBuf::from);
    info!(program = %installed.display(), "executing the installed program");
    alarm::cancel();
    let source = execute(&installed, |command| {
        command.env_remove(PROGRAM).env_remove(INSTALLED);
    });
    Err(ProgramError::Execute {
        path: installed,
        source,
    })
}

/// Whether this program is still on trial, by the record on disk.
#[must_use]
pub(super) fn is_on_trial(folder: &Path) -> bool {
    let record = Programs::open(folder).map(|programs| programs.record());
    record.is_ok_and(|record| record.trial.is_some() && record.current == own_digest())
}

/// Records why this attempt failed, and waits before the next one.
pub(super) fn fail(folder: &Path, reason: String) {
    let written = Programs::open(folder).and_then(|programs| programs.change(|record| record.fail(reason)));
    if let Err(error) = written {
        warn!(
            error = error_chain(&error),
            "cannot record why the program failed"
        );
    }
    thread::sleep(PAUSE);
}

/// The digest that the launcher passed to this process.
fn own_digest() -> Option<Digest> {
    env::var(PROGRAM)
        .ok()
        .and_then(|text| Digest::try_from(text).ok())
}

/// Executes the program that the record names; returns if that is the installed one.
fn execute_current(programs: &Programs) {
    loop {
        let begun = programs.change(|record| record.begin().cloned());
        let program = match begun {
            Ok(Some(program)) => program,
            Ok(None) => return,
            Err(error) => {
                // Attempts that cannot be counted would never end.
                error!(error = error_chain(&error), "running the installed program");
                return;
            }
        };
        let is_on_trial = programs.record().trial.is_some();
        info!(
            program = program.short(),
            is_on_trial, "executing another agent program"
        );
        if is_on_trial {
            let seconds = (TRIAL + LAST_RESORT).as_secs();
            // The alarm survives exec.
            alarm::set(u32::try_from(seconds).unwrap_or(u32::MAX));
        } else {
            alarm::cancel();
        }
        let path = programs.path(&program);
        let installed = match env::var_os(INSTALLED) {
            Some(path) => path,
            None => env::current_exe().map_or_else(|_| OsString::from(OWN), PathBuf::into_os_string),
        };
        let source = execute(&path, |command| {
            command.env(PROGRAM, program.as_str()).env(INSTALLED, &installed);
        });
        alarm::cancel();
        let failure = ProgramError::Execute { path, source };
        let reason = error_chain(&failure);
        error!(reason, "going back to the previous program");
        if let Err(error) = programs.change(|record| record.refuse(reason)) {
            error!(error = error_chain(&error), "running the installed program");
            return;
        }
    }
}

/// Replaces this process; returns only on failure.
fn execute(path: &Path, prepare: impl FnOnce(&mut Command)) -> io::Error {
    let mut own = env::args_os();
    let name = own.next().unwrap_or_else(|| OsStr::new("mesh-agent").into());
    let mut command = Command::new(path);
    command.arg0(name).args(own);
    prepare(&mut command);
    command.exec()
}
