//! Processes by pid and start time, so that a lab never ends one it did not start. Depends on nothing
//! else here.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::wait::wait_until;

/// One process. Its start time distinguishes it from any later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid as the host sees it.
    pub pid: i32,
    /// When it started, in clock ticks since the machine's start.
    pub started: u64,
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs. A process that has ended and waits for its parent does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Ends it at once and waits until it is gone; does nothing if it is gone already.
    ///
    /// # Errors
    /// When the signal is refused or the process does not end.
    pub fn end(self) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid), Signal::SIGKILL)
            .with_context(|| format!("could not end process {}", self.pid))?;
        wait_until(
            &format!("the end of process {}", self.pid),
            Duration::from_secs(20),
            || {
                if self.is_alive() {
                    bail!("it still runs");
                }
                Ok(())
            },
        )
    }
}

/// The first child of a process, e.g. the first process of a pid namespace below `unshare`.
#[must_use]
pub fn first_child(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The name of the program a process runs.
#[must_use]
pub fn program_name(pid: i32) -> Option<String> {
    Some(
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()?
            .trim_end()
            .to_owned(),
    )
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

/// Reads state and start time; the program's name, in brackets, may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive() -> Result<()> {
        assert!(Process::of(std::process::id().try_into()?)?.is_alive());
        Ok(())
    }

    #[test]
    fn another_start_time_is_another_process() -> Result<()> {
        let this = Process::of(std::process::id().try_into()?)?;
        assert!(
            !Process {
                started: this.started + 1,
                ..this
            }
            .is_alive()
        );
        Ok(())
    }

    #[test]
    fn a_bracket_in_the_name_does_not_confuse() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_start_time(stat), Some(4711));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let stat = "7 (a) Z 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_start_time(stat), None);
    }

    #[test]
    fn end_ends_the_process() -> Result<()> {
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let process = Process::of(child.id().try_into()?)?;
        process.end()?;
        assert!(!child.wait()?.success());
        Ok(())
    }
}
