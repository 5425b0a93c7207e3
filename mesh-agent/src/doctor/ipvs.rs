//! Probes of what the IPVS data path needs, in a network namespace that goes with the probe: the kernel
//! loads its modules when it is asked for what is in them.

use super::Check;

/// Everything that IPVS depends on.
pub(super) async fn checks() -> Vec<Check> {
    Vec::new()
}
