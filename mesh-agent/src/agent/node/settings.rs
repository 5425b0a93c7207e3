//! Reads the configuration file again: applies what can change while the agent runs, and names what cannot.

use std::{collections::BTreeSet, sync::Arc};

use tracing::{error, info, warn};

use super::Agent;
use crate::{agent::logging, config::RunOptions, model::NodePolicy};

impl Agent {
    /// Nothing changes if the file is wrong.
    pub(super) fn reload_settings(&mut self) {
        let options = &mut self.options;
        let mut applied = BTreeSet::new();
        let waiting = self.reloader.reload(|name, new| {
            let can = apply(name, new, options);
            if can {
                applied.insert(name.to_owned());
            }
            can
        });
        let waiting = match waiting {
            Ok(waiting) => waiting,
            Err(error) => {
                error!(
                    error = mesh_support::error_chain(&error),
                    "the settings stay as they are"
                );
                return;
            }
        };
        if applied.contains("policy") {
            self.policy = Arc::new(NodePolicy::new(self.options.policy.clone()));
        }
        if !applied.is_empty() {
            info!(settings = ?applied, "settings changed");
        }
        if !waiting.is_empty() {
            warn!(settings = ?waiting, "these settings have changed and need a restart of the agent");
        }
    }
}

/// Applies a setting if the agent can change it while it runs.
fn apply(name: &str, new: &RunOptions, options: &mut RunOptions) -> bool {
    match name {
        "log-level" => {
            options.log_level.clone_from(&new.log_level);
            logging::set_level(&new.log_level);
        }
        // Read when the next state is computed.
        "return-mode" => options.return_mode = new.return_mode,
        "policy" => options.policy.clone_from(&new.policy),
        "host-firewall" => options.host_firewall = new.host_firewall,
        "ipv6" => options.ipv6 = new.ipv6,
        // Read when the agent stops.
        "on-stop" => options.on_stop = new.on_stop,
        _ => return false,
    }
    true
}
