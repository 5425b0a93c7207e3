//! Notifications to the service manager (systemd), where there is one.

use sd_notify::NotifyState;
use tracing::debug;

/// The data path is up: every change of the first state was applied, and it is announced.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The agent is about to end.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The agent rereads its state, or is being replaced; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot read the clock for the service manager"),
    }
}

/// The agent still works, if the service manager wants to know.
pub(super) fn watchdog() {
    if sd_notify::watchdog_enabled().is_some() {
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "cannot notify the service manager");
    }
}
