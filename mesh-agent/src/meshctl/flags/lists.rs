//! Lists of a specification: what is added and removed by name. Pure; used by `create` and `update`.

use std::sync::Arc;

use mesh_orchestrator::spec::{Constraint, Mount, PortConfig, PortRange, Protocol, ServiceSpec, TaskSpec};

use super::{Surroundings, UsageError, fields, values};

/// Texts of flags to put into a specification's lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Additions<'a> {
    pub(super) labels: &'a [String],
    pub(super) container_labels: &'a [String],
    pub(super) env: &'a [String],
    pub(super) env_files: &'a [std::path::PathBuf],
    pub(super) mounts: &'a [String],
    pub(super) networks: &'a [String],
    pub(super) ports: &'a [String],
    pub(super) constraints: &'a [String],
    pub(super) preferences: &'a [String],
    pub(super) secrets: &'a [String],
    pub(super) configs: &'a [String],
    pub(super) hosts: &'a [String],
    pub(super) sysctls: &'a [String],
    pub(super) devices: &'a [String],
    pub(super) depends_on: &'a [String],
    /// What stands behind each flag's name: nothing, or `-add`.
    pub(super) suffix: &'static str,
}

/// Names of what to take out of a specification's lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Removals<'a> {
    pub(super) labels: &'a [String],
    pub(super) container_labels: &'a [String],
    pub(super) env: &'a [String],
    pub(super) mounts: &'a [String],
    pub(super) networks: &'a [String],
    pub(super) ports: &'a [String],
    pub(super) constraints: &'a [String],
    pub(super) preferences: &'a [String],
    pub(super) secrets: &'a [String],
    pub(super) configs: &'a [String],
    pub(super) hosts: &'a [String],
    pub(super) sysctls: &'a [String],
    pub(super) devices: &'a [String],
    pub(super) depends_on: &'a [String],
}

impl Additions<'_> {
    pub(super) fn apply(
        &self,
        spec: &mut ServiceSpec,
        surroundings: &Surroundings<'_>,
    ) -> Result<(), UsageError> {
        let flag = |name: &str| format!("{name}{}", self.suffix);
        let refuse = |name: &str, why: String| UsageError::flag(&flag(name), why);
        spec.labels
            .extend(fields::labels(self.labels).map_err(|why| refuse("label", why))?);
        for text in self.ports {
            let port = values::publish(text).map_err(|why| refuse("publish", why))?;
            if !spec.endpoint_spec.ports.contains(&port) {
                spec.endpoint_spec.ports.push(port);
            }
        }
        add_names(&mut spec.depends_on, self.depends_on);
        self.apply_to_task(Arc::make_mut(&mut spec.task_template), surroundings)
    }

    fn apply_to_task(&self, task: &mut TaskSpec, surroundings: &Surroundings<'_>) -> Result<(), UsageError> {
        let refuse = |name: &str, why: String| UsageError::flag(&format!("{name}{}", self.suffix), why);
        for text in self.networks {
            let network = values::network(text).map_err(|why| refuse("network", why))?;
            add_names(&mut task.networks, &[network]);
        }
        for text in self.constraints {
            let constraint: Constraint = text
                .parse()
                // Docker's engine is who refuses it there.
                .map_err(|why: mesh_orchestrator::spec::SpecError| {
                    UsageError::Line(format!("--constraint{}: {why}", self.suffix))
                })?;
            if !task.placement.constraints.contains(&constraint) {
                task.placement.constraints.push(constraint);
            }
        }
        for text in self.preferences {
            let preference = values::preference(text).map_err(|why| refuse("placement-pref", why))?;
            if !task.placement.preferences.contains(&preference) {
                task.placement.preferences.push(preference);
            }
        }
        let container = &mut task.container_spec;
        container
            .labels
            .extend(fields::labels(self.container_labels).map_err(|why| refuse("container-label", why))?);
        container
            .sysctls
            .extend(fields::labels(self.sysctls).map_err(|why| refuse("sysctl", why))?);
        let given = surroundings.environment_files(self.env_files)?;
        let given = given.into_iter().chain(self.env.iter().cloned());
        let given = fields::environment(given, surroundings.variable).map_err(|why| refuse("env", why))?;
        for variable in given {
            let name = fields::name_of(&variable);
            container.env.retain(|known| fields::name_of(known) != name);
            container.env.push(variable);
        }
        for text in self.mounts {
            let mount = values::mount(text, &surroundings.folder).map_err(|why| refuse("mount", why))?;
            put_mount(&mut container.mounts, mount);
        }
        for (name, texts, list) in [
            ("secret", self.secrets, &mut container.secrets),
            ("config", self.configs, &mut container.configs),
        ] {
            for text in texts {
                let reference = values::file_reference(text).map_err(|why| refuse(name, why))?;
                list.retain(|known| known.source != reference.source || known.target != reference.target);
                list.push(reference);
            }
        }
        for text in self.hosts {
            let valid = text.split_once(':').is_some_and(|(name, address)| {
                !name.is_empty() && address.parse::<std::net::IpAddr>().is_ok()
            });
            if !valid {
                return Err(refuse("host", format!("{text:?} is no host: use name:address")));
            }
            add_names(&mut container.hosts, std::slice::from_ref(text));
        }
        for text in self.devices {
            let device = values::device(text).map_err(|why| refuse("device", why))?;
            container
                .devices
                .retain(|known| known.container_path != device.container_path);
            container.devices.push(device);
        }
        Ok(())
    }
}

impl Removals<'_> {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), UsageError> {
        let among = |list: &[String], name: &str| list.iter().any(|listed| listed == name);
        spec.labels.retain(|name, _| !among(self.labels, name));
        spec.depends_on.retain(|name| !among(self.depends_on, name));
        for text in self.ports {
            let removed = removed_port(text).map_err(|why| UsageError::flag("publish-rm", why))?;
            spec.endpoint_spec.ports.retain(|port| !removed.is_of(port));
        }
        let task = Arc::make_mut(&mut spec.task_template);
        task.networks.retain(|name| !among(self.networks, name));
        let unspaced = |text: &str| text.replace(char::is_whitespace, "");
        let removed: Vec<String> = self.constraints.iter().map(|text| unspaced(text)).collect();
        task.placement
            .constraints
            .retain(|constraint| !among(&removed, &unspaced(&constraint.to_string())));
        task.placement
            .preferences
            .retain(|preference| !among(self.preferences, &format!("spread={}", preference.spread)));
        let container = &mut task.container_spec;
        container
            .labels
            .retain(|name, _| !among(self.container_labels, name));
        container.sysctls.retain(|name, _| !among(self.sysctls, name));
        container
            .env
            .retain(|variable| !among(self.env, fields::name_of(variable)));
        container
            .mounts
            .retain(|mount| !among(self.mounts, &mount.target));
        container
            .secrets
            .retain(|file| !among(self.secrets, &file.source));
        container
            .configs
            .retain(|file| !among(self.configs, &file.source));
        container.devices.retain(|device| {
            !among(self.devices, &device.container_path) && !among(self.devices, &device.host_path)
        });
        container.hosts.retain(|host| {
            let name = host.split(':').next().unwrap_or(host);
            !among(self.hosts, host) && !among(self.hosts, name)
        });
        Ok(())
    }
}

/// A mount takes the place of one with the same target.
fn put_mount(mounts: &mut Vec<Mount>, mount: Mount) {
    mounts.retain(|known| known.target != mount.target);
    mounts.push(mount);
}

fn add_names(list: &mut Vec<String>, names: &[String]) {
    for name in names {
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
}

/// A port to remove is named by its target, and the published port too if that is given.
struct RemovedPort {
    target: PortRange,
    published: Option<PortRange>,
    protocol: Protocol,
}

fn removed_port(text: &str) -> Result<RemovedPort, String> {
    let port = values::publish(text)?;
    Ok(RemovedPort {
        target: port.target_port,
        published: port.published_port,
        protocol: port.protocol,
    })
}

impl RemovedPort {
    fn is_of(&self, port: &PortConfig) -> bool {
        port.protocol == self.protocol
            && port.target_port == self.target
            && (self.published.is_none() || self.published == port.published_port)
    }
}
