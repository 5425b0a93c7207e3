//! Which services send new flows to replicas that fail their check, as there are no others. Pure.

use super::types::{BackendState, Desired, ServiceKey};
use crate::model::Checks;

/// The services all of whose active backends fail their check: all are tried.
#[must_use]
pub fn failing_open(desired: &Desired, checks: Checks<'_>) -> Vec<ServiceKey> {
    let fails = |key: &_| {
        let backend = desired.backends.get(key);
        backend.is_some_and(|backend| {
            backend.state == BackendState::Active && checks.failure(&backend.task).is_some()
        })
    };
    let services = desired.services.iter();
    services
        .filter(|(_, service)| !service.active.is_empty() && service.active.iter().all(fails))
        .map(|(key, _)| *key)
        .collect()
}
