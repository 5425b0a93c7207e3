//! For how long a service's flows may be idle, as its labels say. Pure.

use std::{fmt, time::Duration};

use mesh_support::duration;
use serde::{Deserialize, Serialize};

/// Seconds without a packet after which a flow is over; where there is none, the data path's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleLimits {
    /// Of open TCP connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u32>,
    /// Of UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<u32>,
}

impl IdleLimits {
    /// Whether both are the defaults.
    #[must_use]
    pub fn are_defaults(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for IdleLimits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |seconds: u32| duration::format(Duration::from_secs(seconds.into()));
        if let Some(limit) = self.tcp {
            write!(formatter, " idle {}", seconds(limit))?;
        }
        if let Some(limit) = self.udp {
            write!(formatter, " udp idle {}", seconds(limit))?;
        }
        Ok(())
    }
}
