//! Keeps mesh0 what it should be while the data path wants it, and takes it away when none does. Knows
//! what was refused; the device itself is `mesh0`'s business.

use mesh_support::error_chain;
use tracing::warn;

use crate::{
    mesh0::{Mesh0, Mesh0Error, Settings},
    model::HostInterface,
};

/// The device that local processes' connections leave by, as the agent last made it.
pub(super) struct LocalDevice {
    mesh0: Mesh0,
    made: Option<(Settings, HostInterface)>,
    /// Whether there may be one in the kernel: an earlier agent's, until it has been looked for.
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

    /// The device, if it stands.
    pub(super) fn interface(&self) -> Option<HostInterface> {
        self.made.map(|(_, interface)| interface)
    }

    /// What is wrong with it, in one line.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Somebody may have removed or changed it: the next [`Self::ensure`] looks.
    pub(super) fn doubt(&mut self) {
        self.made = None;
    }

    /// Makes it what it should be.
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

    /// Takes it away, if it may be there; a refusal is said once and tried again by the next call.
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

    /// Takes it away for the last time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn remove(&mut self) -> Result<(), Mesh0Error> {
        self.made = None;
        if !self.may_exist {
            return Ok(());
        }
        match self.mesh0.remove().await {
            // Somebody else's device of that name is no concern of a data path that does not want one.
            Ok(()) | Err(Mesh0Error::NameTaken(_)) => {
                self.may_exist = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
