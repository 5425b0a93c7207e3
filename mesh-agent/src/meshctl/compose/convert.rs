//! One service of a compose file as a specification. Pure but for environment files.

use std::sync::Arc;

use mesh_orchestrator::spec::{ContainerSpec, ServiceSpec, TaskSpec};

use super::{
    ComposeError, deploy,
    field::Field,
    mounts,
    parts::Names,
    values::{env_files, healthcheck, hosts, logging, platform, references},
};
use crate::meshctl::{
    flags::{self, Surroundings, fields, values},
    views::stacks::NAMESPACE,
};

/// Keys that change nothing here; one warning names them.
const IGNORED: [&str; 14] = [
    "annotations",
    "attach",
    "build",
    "container_name",
    "develop",
    "domainname",
    "expose",
    "external_links",
    "links",
    "profiles",
    "pull_policy",
    "restart",
    "stdin_open",
    "tty",
];

/// Keys without which the service would be another one; what can be done instead.
const UNSUPPORTED: [(&str, &str); 27] = [
    ("blkio_config", ""),
    ("cgroup", ""),
    ("cgroup_parent", ""),
    ("cpu_count", "use deploy.resources"),
    ("cpu_shares", "use deploy.resources"),
    ("cpus", "use deploy.resources.limits.cpus"),
    ("cpuset", ""),
    ("credential_spec", ""),
    ("dns", ""),
    ("dns_search", ""),
    ("extends", "give docker a merged file: `docker compose config`"),
    ("gpus", ""),
    ("group_add", ""),
    ("ipc", ""),
    ("isolation", ""),
    ("mac_address", ""),
    ("mem_limit", "use deploy.resources.limits.memory"),
    ("mem_reservation", "use deploy.resources.reservations.memory"),
    ("oom_score_adj", ""),
    ("pid", ""),
    ("pids_limit", "use deploy.resources.limits.pids"),
    ("runtime", ""),
    ("security_opt", ""),
    ("shm_size", "mount a tmpfs at /dev/shm with tmpfs.size"),
    ("ulimits", ""),
    ("userns_mode", ""),
    ("volumes_from", ""),
];

/// Keys that are understood.
const KNOWN: [&str; 32] = [
    "cap_add",
    "cap_drop",
    "command",
    "configs",
    "depends_on",
    "deploy",
    "devices",
    "entrypoint",
    "env_file",
    "environment",
    "extra_hosts",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "labels",
    "logging",
    "network_mode",
    "networks",
    "platform",
    "ports",
    "privileged",
    "read_only",
    "scale",
    "secrets",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "tmpfs",
    "user",
    "volumes",
    "working_dir",
];

/// What services refer to by name.
pub(super) struct Parts<'a> {
    pub(super) stack: &'a str,
    pub(super) networks: Names,
    pub(super) volumes: Names,
    pub(super) secrets: Names,
    pub(super) configs: Names,
    /// The names of the file's services.
    pub(super) services: Vec<&'a str>,
}

/// One service; what of it is ignored is added to the list.
pub(super) fn service(
    name: &str,
    field: &Field<'_>,
    parts: &Parts<'_>,
    surroundings: &Surroundings<'_>,
    ignored: &mut Vec<String>,
) -> Result<ServiceSpec, ComposeError> {
    let mut spec = flags::empty(format!("{}_{name}", parts.stack), "");
    let mut task = (*spec.task_template).clone();
    let mut environment = Vec::new();
    let mut environment_files = Vec::new();
    for (key, value) in field.map()? {
        match key {
            "deploy" => deploy::apply(&value, &mut spec, &mut task)?,
            "ports" => ports(&value, &mut spec)?,
            "depends_on" => spec.depends_on = depends_on(&value, parts)?,
            "networks" => networks(&value, parts, &mut task, ignored)?,
            "network_mode" => match value.text()?.as_str() {
                "bridge" => task.networks = vec!["bridge".into()],
                "host" => task.networks = vec!["host".into()],
                "none" => return Err(value.unsupported("use bridge or host")),
                _ => return Err(value.unsupported("use bridge, host, or an external network")),
            },
            "logging" => task.log_driver = logging(&value)?,
            "platform" => task.placement.platforms = vec![platform(&value)?],
            "environment" => {
                for (name, value) in value.pairs()? {
                    environment.push(match value {
                        Some(value) => format!("{name}={value}"),
                        None => name,
                    });
                }
            }
            "env_file" => environment_files = env_files(&value, surroundings)?,
            "scale" => {
                return Err(value.unsupported("use deploy.replicas"));
            }
            "privileged" if value.truth()? => return Err(value.unsupported("use cap_add and devices")),
            "privileged" => {}
            _ if key.starts_with("x-") => {}
            _ if IGNORED.contains(&key) => ignored.push(value.path.clone()),
            _ => {
                if let Some((_, instead)) = UNSUPPORTED.iter().find(|(name, _)| *name == key) {
                    return Err(value.unsupported(instead));
                }
                container_key(key, &value, &mut task.container_spec, parts, surroundings)?;
            }
        }
    }
    if task.container_spec.image.is_empty() {
        return Err(field.refuse("an image is needed: services are not built here"));
    }
    environment_files.extend(environment);
    task.container_spec.env = fields::environment(environment_files, surroundings.variable)
        .map_err(|why| ComposeError::refused(format!("{}.environment", field.path), why))?;
    task.container_spec
        .labels
        .insert(NAMESPACE.into(), parts.stack.into());
    spec.labels.insert(NAMESPACE.into(), parts.stack.into());
    spec.labels
        .insert(super::STACK_IMAGE.into(), task.container_spec.image.clone());
    spec.task_template = Arc::new(task);
    spec.validated().map_err(|why| field.refuse(why.to_string()))
}

/// A key of the container alone.
fn container_key(
    key: &str,
    value: &Field<'_>,
    container: &mut ContainerSpec,
    parts: &Parts<'_>,
    surroundings: &Surroundings<'_>,
) -> Result<(), ComposeError> {
    match key {
        "image" => container.image = value.text()?,
        "command" => container.args = value.command()?,
        "entrypoint" => container.command = value.command()?,
        "user" => container.user = Some(value.text()?),
        "working_dir" => container.dir = Some(value.text()?),
        "hostname" => container.hostname = Some(value.text()?),
        "init" => container.init = value.truth()?,
        "read_only" => container.read_only = value.truth()?,
        "labels" => container.labels = value.labels()?,
        "sysctls" => container.sysctls = value.labels()?,
        "stop_signal" => container.stop_signal = Some(value.text()?),
        "stop_grace_period" => container.stop_grace_period = Some(value.duration()?),
        "cap_add" => {
            container.capability_add = value
                .texts()?
                .iter()
                .map(|name| flags::capability(name))
                .collect();
        }
        "cap_drop" => {
            container.capability_drop = value
                .texts()?
                .iter()
                .map(|name| flags::capability(name))
                .collect();
        }
        "healthcheck" => container.healthcheck = healthcheck(value)?,
        "secrets" => container.secrets = references(value, &parts.secrets)?,
        "configs" => container.configs = references(value, &parts.configs)?,
        "extra_hosts" => container.hosts = hosts(value)?,
        "devices" => {
            for item in value.list()? {
                let device = values::device(&item.text()?).map_err(|why| item.refuse(why))?;
                container.devices.push(device);
            }
        }
        "volumes" => {
            for item in value.list()? {
                let mount = mounts::volume(&item, &parts.volumes, surroundings)?;
                container.mounts.push(mount);
            }
        }
        "tmpfs" => {
            for item in value.one_or_more()? {
                container.mounts.push(mounts::tmpfs(&item)?);
            }
        }
        _ => {
            let known: Vec<&str> = KNOWN.iter().chain(&IGNORED).copied().collect();
            return Err(value.unknown(key, &known));
        }
    }
    Ok(())
}

fn ports(field: &Field<'_>, spec: &mut ServiceSpec) -> Result<(), ComposeError> {
    for item in field.list()? {
        let mut long = Vec::new();
        let text = if item.value.is_object() {
            for (key, value) in item.map()? {
                match key {
                    "target" | "published" | "protocol" | "mode" => {
                        long.push(format!("{key}={}", value.text()?));
                    }
                    "name" | "app_protocol" => {}
                    "host_ip" => {
                        return Err(value.unsupported("a service answers on every address of every node"));
                    }
                    _ => return Err(value.unknown(key, &["target", "published", "protocol", "mode"])),
                }
            }
            long.join(",")
        } else {
            item.text()?
        };
        let port = values::publish(&text).map_err(|why| item.refuse(why))?;
        spec.endpoint_spec.ports.push(port);
    }
    Ok(())
}

/// What must have become of a service before one that depends on it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// All its tasks run, healthy where there is a check.
    Ready,
    /// All its tasks have completed.
    Completed,
}

/// The services that a service depends on, with their conditions.
pub(super) fn conditions<'a>(service: &Field<'a>) -> Result<Vec<(String, Condition)>, ComposeError> {
    let fields = service.map()?;
    let Some((_, field)) = fields.iter().find(|(key, _)| *key == "depends_on") else {
        return Ok(Vec::new());
    };
    let found = dependencies(field)?.into_iter();
    Ok(found.map(|(name, _, condition)| (name, condition)).collect())
}

fn dependencies<'a>(field: &Field<'a>) -> Result<Vec<(String, Field<'a>, Condition)>, ComposeError> {
    let mut found = Vec::new();
    if field.value.is_array() {
        for item in field.list()? {
            found.push((item.text()?, item, Condition::Ready));
        }
        return Ok(found);
    }
    for (name, conditions) in field.map()? {
        let mut condition = Condition::Ready;
        for (key, value) in conditions.map()? {
            match key {
                "condition" => {
                    condition = value.word(&[
                        ("service_started", Condition::Ready),
                        ("service_healthy", Condition::Ready),
                        ("service_completed_successfully", Condition::Completed),
                    ])?;
                }
                "restart" | "required" => {}
                _ => return Err(value.unknown(key, &["condition", "restart", "required"])),
            }
        }
        found.push((name.to_owned(), conditions, condition));
    }
    Ok(found)
}

fn depends_on(field: &Field<'_>, parts: &Parts<'_>) -> Result<Vec<String>, ComposeError> {
    dependencies(field)?
        .into_iter()
        .map(|(name, at, _)| {
            if parts.services.contains(&name.as_str()) {
                Ok(format!("{}_{name}", parts.stack))
            } else {
                Err(at.refuse(format!("{name:?} is not among the file's services")))
            }
        })
        .collect()
}

fn networks(
    field: &Field<'_>,
    parts: &Parts<'_>,
    task: &mut TaskSpec,
    ignored: &mut Vec<String>,
) -> Result<(), ComposeError> {
    let mut names = Vec::new();
    if field.value.is_array() {
        for item in field.list()? {
            names.push((item.text()?, item));
        }
    } else {
        for (name, options) in field.map()? {
            for (key, value) in options.map()? {
                match key {
                    "aliases" | "priority" => ignored.push(value.path.clone()),
                    _ => return Err(value.unsupported("")),
                }
            }
            names.push((name.to_owned(), options));
        }
    }
    for (name, at) in names {
        let network = parts.networks.resolve(&name).map_err(|why| at.refuse(why))?;
        if !task.networks.contains(&network) {
            task.networks.push(network);
        }
    }
    Ok(())
}
