//! When a container's process ends. The kernel says so at once, the engine later, or never while it hangs.
//! Only where this process sees the host's processes; a container of its own does not. Imports nothing.

use std::{fs, io, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{Interest, unix::AsyncFd};

/// The main process of a container.
#[derive(Debug)]
pub(super) struct Process(AsyncFd<OwnedFd>);

impl Process {
    /// Opens the process that the engine names. `None` if it is not the container's: it has ended, or its
    /// number means another process here.
    pub(super) fn of_container(pid: i64, container: &str) -> Option<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let descriptor = pidfd_open(number, PidfdFlags::NONBLOCK).ok()?;
        // Read after the process is held, so its number cannot be reused in between.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        if !cgroups.contains(container) {
            return None;
        }
        Self::watch(descriptor).ok()
    }

    #[expect(
        deprecated,
        reason = "unsound only for types whose descriptor can change or close early; an owned one cannot"
    )]
    fn watch(descriptor: OwnedFd) -> io::Result<Self> {
        AsyncFd::with_interest(descriptor, Interest::READABLE).map(Self)
    }

    /// Waits for its end.
    pub(super) async fn ended(self) {
        // An error would mean that the runtime is shutting down.
        if self.0.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn child() -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = child();
        let number = Pid::from_child(&child);
        let process = Process::watch(pidfd_open(number, PidfdFlags::NONBLOCK).unwrap()).unwrap();
        let ended = tokio::spawn(process.ended());
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        child.kill().unwrap();
        ended.await.unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_number_that_means_another_process_here_is_not_taken_for_the_containers() {
        let mut child = child();
        let container = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert!(Process::of_container(child.id().into(), container).is_none());
        assert!(Process::of_container(0, container).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
