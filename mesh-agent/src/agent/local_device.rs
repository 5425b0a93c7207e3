//! Keeps mesh0 configured while the data path needs it, and removes it when none does. Remembers what was
//! refused; the device itself is `mesh0`'s.

use std::path::Path;

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
    /// Whether answers to IPv6 clients are routed to it.
    leads_to_ipv6: bool,
    /// Whether there may be one in the kernel; at first possibly an earlier agent's.
    may_exist: bool,
    trouble: Option<String>,
}

impl LocalDevice {
    /// In this network namespace, with its kernel settings below a folder.
    pub(super) fn new(sysctls: &Path) -> Result<Self, Mesh0Error> {
        Ok(Self {
            mesh0: Mesh0::new(sysctls)?,
            made: None,
            leads_to_ipv6: false,
            may_exist: true,
            trouble: None,
        })
    }

    /// The device, if it is up.
    pub(super) fn interface(&self) -> Option<HostInterface> {
        self.made.map(|(_, interface)| interface)
    }

    /// Whether answers to IPv6 clients are routed to it.
    pub(super) fn leads_to_ipv6(&self) -> bool {
        self.made.is_some() && self.leads_to_ipv6
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
                self.ensure_clients(settings, interface).await;
            }
            Err(error) => {
                self.made = None;
                self.note(
                    &error,
                    "; local processes do not reach published ports until this succeeds",
                );
            }
        }
    }

    async fn ensure_clients(&mut self, settings: Settings, interface: HostInterface) {
        match self.mesh0.ensure_clients(settings, interface).await {
            Ok(()) => {
                self.leads_to_ipv6 = settings.ipv6;
                self.trouble = None;
            }
            Err(error) => {
                self.leads_to_ipv6 = false;
                self.note(&error, "; IPv6 is not served until this succeeds");
            }
        }
    }

    /// Keeps what went wrong, and logs it unless it was so before.
    fn note(&mut self, error: &Mesh0Error, consequence: &str) {
        let trouble = error_chain(error);
        if self.trouble.as_ref() != Some(&trouble) {
            warn!("{trouble}{consequence}");
        }
        self.trouble = Some(trouble);
    }

    /// Removes it, if it may exist; a refusal is logged once, and the next call retries.
    pub(super) async fn release(&mut self) {
        match self.remove().await {
            Ok(()) => self.trouble = None,
            Err(error) => self.note(&error, ""),
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
