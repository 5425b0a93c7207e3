//! Flags that `service create` and `service update` share: each replaces one setting. Pure.

use std::{sync::Arc, time::Duration};

use clap::Args;
use mesh_orchestrator::spec::{
    ContainerSpec, LogDriver, RestartCondition, ServiceMode, ServiceSpec, TaskSpec,
};

use super::{
    UsageError, fields,
    policies::{HealthFlags, RebalanceFlags, RestartFlags, RollbackPolicyFlags, UpdatePolicyFlags, set},
    units, words,
};

/// Settings of a service; what is not given stays, or has docker's default.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct Settings {
    /// Number of tasks
    #[arg(long, value_name = "NUMBER")]
    replicas: Option<u32>,
    /// Number of job tasks to run concurrently [default: equal to --replicas]
    #[arg(long, value_name = "NUMBER")]
    max_concurrent: Option<u32>,
    /// Maximum number of tasks per node (0 = unlimited)
    #[arg(long, value_name = "NUMBER")]
    replicas_max_per_node: Option<u32>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(long, short = 'w', value_name = "PATH")]
    workdir: Option<String>,
    /// Container hostname
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Use an init inside each container to forward signals and reap processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    init: Option<bool>,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    read_only: Option<bool>,
    /// Add Linux capabilities
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Signal to stop the container
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time to wait before force killing a container (ms|s|m|h) [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    stop_grace_period: Option<Duration>,
    /// Limit CPUs
    #[arg(long, value_name = "DECIMAL", value_parser = units::nano_cpus)]
    limit_cpu: Option<u64>,
    /// Limit memory
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    limit_memory: Option<u64>,
    /// Limit maximum number of processes (0 = unlimited)
    #[arg(long, value_name = "NUMBER")]
    limit_pids: Option<u64>,
    /// Reserve CPUs
    #[arg(long, value_name = "DECIMAL", value_parser = units::nano_cpus)]
    reserve_cpu: Option<u64>,
    /// Reserve memory
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    reserve_memory: Option<u64>,
    /// Logging driver for service
    #[arg(long, value_name = "NAME")]
    log_driver: Option<String>,
    /// Logging driver options
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    #[command(flatten)]
    restart: RestartFlags,
    #[command(flatten)]
    update: UpdatePolicyFlags,
    #[command(flatten)]
    rollback: RollbackPolicyFlags,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    rebalance: RebalanceFlags,
    /// Endpoint mode; only vip, the mesh's
    #[arg(long, value_name = "MODE", value_parser = ["vip"], hide = true)]
    endpoint_mode: Option<String>,
    /// Accepted for scripts: credentials are stored by `meshctl registry login`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    with_registry_auth: Option<bool>,
    /// Do not query the registry to resolve image digest
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    no_resolve_image: Option<bool>,
}

impl Settings {
    /// Whether the registry is to be asked for the digest of the image; if not given, when that changes.
    pub(super) fn resolves_image(&self, image_given: bool) -> Option<bool> {
        match self.no_resolve_image {
            Some(true) => Some(false),
            Some(false) | None => image_given.then_some(true),
        }
    }

    /// How many tasks were asked for.
    pub(super) fn replicas(&self) -> Option<u32> {
        self.replicas
    }

    /// How many of a job's tasks may run at once.
    pub(super) fn max_concurrent(&self) -> Option<u32> {
        self.max_concurrent
    }

    /// Puts what was given into a specification whose mode is set already.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), UsageError> {
        self.update.apply(&mut spec.update_config);
        self.rollback.apply(&mut spec.rollback_config);
        if spec.mode.is_job() && (self.update.is_given() || self.rollback.is_given()) {
            return Err(UsageError::Line(
                "update and rollback configuration is not supported for jobs".into(),
            ));
        }
        self.rebalance.apply(spec);
        if self.replicas_max_per_node.is_some_and(|most| most > 0) && spec.mode.is_global() {
            return Err(UsageError::Line(
                "replicas-max-per-node can only be used with replicated or replicated-job mode".into(),
            ));
        }
        self.apply_to_task(Arc::make_mut(&mut spec.task_template), spec.mode)
    }

    fn apply_to_task(&self, task: &mut TaskSpec, mode: ServiceMode) -> Result<(), UsageError> {
        let limits = &mut task.resources.limits;
        set(&mut limits.nano_cpus, self.limit_cpu);
        set(&mut limits.memory_bytes, self.limit_memory);
        set(&mut limits.pids, self.limit_pids);
        let reservations = &mut task.resources.reservations;
        set(&mut reservations.nano_cpus, self.reserve_cpu);
        set(&mut reservations.memory_bytes, self.reserve_memory);
        set(
            &mut task.placement.max_replicas_per_node,
            self.replicas_max_per_node,
        );
        let restart = &mut task.restart_policy;
        self.restart.apply(restart);
        if mode.is_job() && restart.condition == Some(RestartCondition::Any) {
            return Err(UsageError::flag(
                "restart-condition",
                "a job's tasks are meant to end: use none or on-failure",
            ));
        }
        self.apply_log_driver(task)?;
        self.apply_to_container(&mut task.container_spec)
    }

    fn apply_log_driver(&self, task: &mut TaskSpec) -> Result<(), UsageError> {
        let options = fields::labels(&self.log_opt).map_err(|why| UsageError::flag("log-opt", why))?;
        match (&self.log_driver, &mut task.log_driver) {
            (Some(name), driver) if name.is_empty() => *driver = None,
            (Some(name), driver) => {
                *driver = Some(LogDriver {
                    name: name.clone(),
                    options,
                });
            }
            (None, Some(driver)) => driver.options.extend(options),
            (None, None) if options.is_empty() => {}
            (None, None) => return Err(UsageError::Line("--log-opt needs --log-driver".into())),
        }
        Ok(())
    }

    fn apply_to_container(&self, container: &mut ContainerSpec) -> Result<(), UsageError> {
        // An empty text takes a setting away again.
        for (given, setting) in [
            (&self.user, &mut container.user),
            (&self.workdir, &mut container.dir),
            (&self.hostname, &mut container.hostname),
            (&self.stop_signal, &mut container.stop_signal),
        ] {
            if let Some(given) = given {
                *setting = Some(given.clone()).filter(|text| !text.is_empty());
            }
        }
        if let Some(entrypoint) = &self.entrypoint {
            container.command = words("entrypoint", entrypoint)?;
        }
        set(&mut container.init, self.init);
        set(&mut container.read_only, self.read_only);
        if self.stop_grace_period.is_some() {
            container.stop_grace_period = self.stop_grace_period;
        }
        self.apply_capabilities(container);
        self.health.apply(&mut container.healthcheck)
    }

    /// What is added is not dropped any more, and the other way round; `RESET` forgets what was there.
    fn apply_capabilities(&self, container: &mut ContainerSpec) {
        let (add, drop) = (&mut container.capability_add, &mut container.capability_drop);
        put_capabilities(&self.cap_drop, drop, add);
        put_capabilities(&self.cap_add, add, drop);
    }
}

fn put_capabilities(given: &[String], list: &mut Vec<String>, other: &mut Vec<String>) {
    for name in given {
        let name = capability(name);
        if name == "RESET" {
            list.clear();
            continue;
        }
        other.retain(|known| *known != name);
        if !list.contains(&name) {
            list.push(name);
        }
    }
}

/// As docker's engine names capabilities: in capitals; `CAP_` is implied.
pub(crate) fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)
}
