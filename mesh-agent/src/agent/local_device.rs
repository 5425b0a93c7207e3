//! Keeps mesh0 configured while the data path needs it, and removes it when none does. Remembers what was
//! refused; the device itself is `mesh0`'s.

use mesh_support::error_chain;
use tracing::warn;

use crate::{
    mesh0::{Mesh0, Mesh0Error, Settings},
    model::HostInterface,
};

/// The device that local processes' connections leave by, as last configured.
pub(super) struct LocalDevice {
    mesh0: Mesh0,
    made: Option<(Settings, HostInterface)>,
    /// Whether there may be one in the kernel; at first possibly an earlier agent's.
    may_exist: bool,
    trouble: Option<String>,
}

impl LocalDevice {
    pub(super) fn new() -> Result<Self, Mesh0Error> {
        Ok(Self {
            mesh0: Mesh0::new()?,
            made: None,
            may_exist: true,
            trouble: None,
        })
    }

    /// The device, if it is up.
    pub(super) fn interface(&self) -> Option<HostInterface> {
        self.made.map(|(_, interface)| interface)
    }

    /// What is wrong with it, in one line.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Makes the next [`Self::ensure`] verify that it was not removed or changed.
    pub(super) fn verify_next_time(&mut self) {
        self.made = None;
    }

    /// Creates or corrects the device.
    pub(super) async fn ensure(&mut self, settings: Settings) {
        if self.made.is_some_and(|(known, _)| known == settings) {
            return;
        }
        self.may_exist = true;
        match self.mesh0.ensure(settings).await {
            Ok(interface) => {
                self.made = Some((settings, interface));
                self.trouble = None;
            }
            Err(error) => {
                let trouble = error_chain(&error);
                if self.trouble.as_ref() != Some(&trouble) {
                    warn!("{trouble}; local processes do not reach published ports until this succeeds");
                }
                self.made = None;
                self.trouble = Some(trouble);
            }
        }
    }

    /// Removes it, if it may exist; a refusal is logged once, and the next call retries.
    pub(super) async fn release(&mut self) {
        match self.remove().await {
            Ok(()) => self.trouble = None,
            Err(error) => {
                let trouble = error_chain(&error);
                if self.trouble.as_ref() != Some(&trouble) {
                    warn!("{trouble}");
                }
                self.trouble = Some(trouble);
            }
        }
    }

    /// Removes it, if it may exist.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn remove(&mut self) -> Result<(), Mesh0Error> {
        self.made = None;
        if !self.may_exist {
            return Ok(());
        }
        match self.mesh0.remove().await {
            // A foreign device of that name does not matter to a data path that needs none.
            Ok(_) | Err(Mesh0Error::NameTaken(_)) => {
                self.may_exist = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
