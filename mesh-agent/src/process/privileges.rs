//! Drops the capabilities that the agent never uses. Capabilities belong to threads, so this happens before
//! there is a second one.

use std::collections::HashSet;

use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::debug;

/// Netlink and tc; maps and programs; reading kernel memory in programs; entering containers' network
/// namespaces (and all of BPF before Linux 5.8).
const KEPT: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
];

/// The process's capabilities could not be reduced.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the agent's capabilities; is /proc mounted, and prctl allowed?")]
pub struct PrivilegesError {
    operation: &'static str,
    source: caps::errors::CapsError,
}

/// Lifts the limit on locked memory (kernels before 5.11 count maps against it) and drops every capability
/// that the agent does not need. Call it before the first thread is started.
///
/// # Errors
/// When the kernel refuses to read or lower the capabilities.
pub fn reduce() -> Result<(), PrivilegesError> {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "cannot lift the limit on locked memory; kernels since 5.11 do not need it");
    }
    let failed = |operation| move |source| PrivilegesError { operation, source };
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("read"))?;
    let kept: HashSet<_> = permitted
        .into_iter()
        .filter(|capability| KEPT.contains(capability))
        .collect();
    caps::clear(None, CapSet::Ambient).map_err(failed("clear the ambient set of"))?;
    caps::set(None, CapSet::Inheritable, &HashSet::new()).map_err(failed("lower"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed("lower"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("lower"))?;
    Ok(())
}

/// Passes the agent's remaining capabilities on to the program that this process is about to execute. Root
/// keeps them anyway; other users only keep ambient ones. Call it on the thread that executes.
///
/// # Errors
/// When the kernel refuses.
pub fn pass_on() -> Result<(), PrivilegesError> {
    let failed = |operation| move |source| PrivilegesError { operation, source };
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("read"))?;
    caps::set(None, CapSet::Inheritable, &permitted).map_err(failed("pass on"))?;
    caps::set(None, CapSet::Ambient, &permitted).map_err(failed("pass on"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_kept() {
        // On a thread of its own, which takes its capabilities with it.
        std::thread::spawn(|| {
            reduce().unwrap();
            let left = caps::read(None, CapSet::Effective).unwrap();
            assert!(
                left.iter().all(|capability| KEPT.contains(capability)),
                "{left:?}"
            );
            assert!(left.contains(&Capability::CAP_NET_ADMIN), "this test needs root");
            assert!(!caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_MODULE).unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_kept_is_passed_on_and_nothing_else() {
        std::thread::spawn(|| {
            reduce().unwrap();
            pass_on().unwrap();
            let passed = caps::read(None, CapSet::Ambient).unwrap();
            assert_eq!(passed, caps::read(None, CapSet::Permitted).unwrap());
            assert!(
                passed.contains(&Capability::CAP_NET_ADMIN),
                "this test needs root"
            );
            // The next program starts in the same way.
            reduce().unwrap();
            assert!(caps::read(None, CapSet::Ambient).unwrap().is_empty());
        })
        .join()
        .unwrap();
    }
}
