//! Executes the program that the record names, in this process: the pid, the arguments and the environment stay, so
//! that a service manager or a container sees one agent. To be called from the main thread, with nothing else running.

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

use nix::unistd::alarm;
use tracing::{error, info, warn};

use super::{Digest, ProgramError, Programs, TRIAL};
use crate::error::error_chain;

/// Tells a program which one it is, so that it goes on instead of executing itself.
const PROGRAM: &str = "MESH_AGENT_PROGRAM";
/// Tells it where the installed program is, to go back to.
const INSTALLED: &str = "MESH_AGENT_INSTALLED";
/// This process's own program, though its file was replaced.
const OWN: &str = "/proc/self/exe";
/// Between two attempts of one program.
const PAUSE: Duration = Duration::from_secs(1);
/// A program that hangs before it can look at the clock is ended by a signal, so much later than it should end itself.
const LAST_RESORT: Duration = Duration::from_secs(10);

/// What this process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Run, as ever.
    Proven,
    /// Run, and prove itself within [`TRIAL`].
    OnTrial,
}

/// Executes the program that is to run, where that is not this one; returns when it is.
#[must_use]
pub fn start(folder: &Path) -> Start {
    let programs = match Programs::open(folder) {
        Ok(programs) => programs,
        Err(error) => {
            warn!(error = error_chain(&error), "running the installed program");
            return Start::Proven;
        }
    };
    if let Some(own) = told() {
        let record = programs.record();
        return match record.trial.is_some() && record.current.as_ref() == Some(&own) {
            true => Start::OnTrial,
            false => Start::Proven,
        };
    }
    execute_current(&programs);
    Start::Proven
}

/// Executes the program that is to run next: the one that was deployed, or after its trial has failed once more itself
/// or the one before.
///
/// # Errors
/// When there is nothing that can be executed.
pub fn again(folder: &Path) -> Result<std::convert::Infallible, ProgramError> {
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

/// Whether this program's trial has not ended; whatever this process knew when it started.
#[must_use]
pub fn is_on_trial(folder: &Path) -> bool {
    let record = Programs::open(folder).map(|programs| programs.record());
    record.is_ok_and(|record| record.trial.is_some() && record.current == told())
}

/// Writes down why this program's trial fails, and waits for a moment.
pub fn fail(folder: &Path, reason: String) {
    let written = Programs::open(folder).and_then(|programs| programs.change(|record| record.fail(reason)));
    if let Err(error) = written {
        warn!(
            error = error_chain(&error),
            "why the program fails is not written down"
        );
    }
    thread::sleep(PAUSE);
}

/// The program that this process was told to be.
fn told() -> Option<Digest> {
    env::var(PROGRAM)
        .ok()
        .and_then(|text| Digest::try_from(text).ok())
}

/// Executes what the record names; returns when that is the installed program.
fn execute_current(programs: &Programs) {
    loop {
        let begun = programs.change(|record| record.begin().cloned());
        let program = match begun {
            Ok(Some(program)) => program,
            Ok(None) => return,
            Err(error) => {
                // Attempts that cannot be counted could go on for ever.
                error!(error = error_chain(&error), "running the installed program");
                return;
            }
        };
        let is_on_trial = programs.record().trial.is_some();
        info!(
            program = program.short(),
            is_on_trial, "executing another program of the agent"
        );
        if is_on_trial {
            let seconds = (TRIAL + LAST_RESORT).as_secs();
            // The alarm outlives the execution.
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
        error!(reason, "going back to the program before");
        if let Err(error) = programs.change(|record| record.refuse(reason)) {
            error!(error = error_chain(&error), "running the installed program");
            return;
        }
    }
}

/// Takes the process over; returns only when that fails.
fn execute(path: &Path, prepare: impl FnOnce(&mut Command)) -> io::Error {
    let mut own = env::args_os();
    let name = own.next().unwrap_or_else(|| OsStr::new("mesh-agent").into());
    let mut command = Command::new(path);
    command.arg0(name).args(own);
    prepare(&mut command);
    command.exec()
}
