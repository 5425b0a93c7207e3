//! Flags that `service create` and `service update` share: each replaces one setting. Pure.

use std::{sync::Arc, time::Duration};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use mesh_orchestrator::spec::{
    ContainerSpec, FailureAction, HealthCheck, LogDriver, Probe, RestartCondition, ServiceMode, ServiceSpec,
    TaskSpec, UpdateConfig, UpdateOrder,
};
use serde::de::DeserializeOwned;

use super::{UsageError, fields, units, words};

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
    /// Accepted for scripts: tags are resolved where tasks run
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    no_resolve_image: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
struct RestartFlags {
    /// Restart when condition is met ("none", "on-failure", "any") [default: any]
    #[arg(long, value_name = "CONDITION", value_parser = PossibleValuesParser::new(["none", "on-failure", "any"]).try_map(word::<RestartCondition>))]
    restart_condition: Option<RestartCondition>,
    /// Delay between restart attempts (ms|s|m|h) [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    restart_delay: Option<Duration>,
    /// Maximum number of restarts before giving up
    #[arg(long, value_name = "NUMBER")]
    restart_max_attempts: Option<u32>,
    /// Window used to evaluate the restart policy (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    restart_window: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
struct UpdatePolicyFlags {
    /// Maximum number of tasks updated simultaneously (0 to update all at once) [default: 1]
    #[arg(long, value_name = "NUMBER")]
    update_parallelism: Option<u32>,
    /// Delay between updates (ms|s|m|h) [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    update_delay: Option<Duration>,
    /// Duration after each task update to monitor for failure (ms|s|m|h) [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    update_monitor: Option<Duration>,
    /// Action on update failure ("pause", "continue", "rollback") [default: pause]
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(["pause", "continue", "rollback"]).try_map(word::<FailureAction>))]
    update_failure_action: Option<FailureAction>,
    /// Failure rate to tolerate during an update [default: 0]
    #[arg(long, value_name = "FLOAT")]
    update_max_failure_ratio: Option<f64>,
    /// Update order ("start-first", "stop-first") [default: stop-first]
    #[arg(long, value_name = "ORDER", value_parser = PossibleValuesParser::new(["start-first", "stop-first"]).try_map(word::<UpdateOrder>))]
    update_order: Option<UpdateOrder>,
    /// Time in which a new task must run, else it has failed (ms|s|m|h; 0 to wait for ever) [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    update_progress_deadline: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
struct RollbackPolicyFlags {
    /// Maximum number of tasks rolled back simultaneously (0 to roll back all at once) [default: 1]
    #[arg(long, value_name = "NUMBER")]
    rollback_parallelism: Option<u32>,
    /// Delay between task rollbacks (ms|s|m|h) [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    rollback_delay: Option<Duration>,
    /// Duration after each task rollback to monitor for failure (ms|s|m|h) [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    rollback_monitor: Option<Duration>,
    /// Action on rollback failure ("pause", "continue") [default: pause]
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(["pause", "continue"]).try_map(word::<FailureAction>))]
    rollback_failure_action: Option<FailureAction>,
    /// Failure rate to tolerate during a rollback [default: 0]
    #[arg(long, value_name = "FLOAT")]
    rollback_max_failure_ratio: Option<f64>,
    /// Rollback order ("start-first", "stop-first") [default: stop-first]
    #[arg(long, value_name = "ORDER", value_parser = PossibleValuesParser::new(["start-first", "stop-first"]).try_map(word::<UpdateOrder>))]
    rollback_order: Option<UpdateOrder>,
    /// Time in which a task must run on the way back (ms|s|m|h; 0 to wait for ever) [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    rollback_progress_deadline: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
struct HealthFlags {
    /// Command to run to check health
    #[arg(long, value_name = "COMMAND", group = "probe")]
    health_cmd: Option<String>,
    /// HTTP GET by the agent to check health, 200 to 399 is healthy
    #[arg(long, value_name = "PORT[/PATH]", group = "probe", value_parser = http_probe)]
    health_http: Option<Probe>,
    /// TCP connection by the agent to check health
    #[arg(long, value_name = "PORT", group = "probe")]
    health_tcp: Option<u16>,
    /// Time between running the check (ms|s|m|h) [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    health_interval: Option<Duration>,
    /// Maximum time to allow one check to run (ms|s|m|h) [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    health_timeout: Option<Duration>,
    /// Consecutive failures needed to report unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
    /// Start period for the container to initialize before counting retries towards unstable (ms|s|m|h)
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    health_start_period: Option<Duration>,
    /// Time between running the check during the start period (ms|s|m|h) [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    health_start_interval: Option<Duration>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    no_healthcheck: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
struct RebalanceFlags {
    /// Move tasks to nodes that join or return
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    rebalance_automatic: Option<bool>,
    /// Tasks that one automatic rebalancing moves at most [default: 10]
    #[arg(long, value_name = "NUMBER")]
    rebalance_max_moves: Option<u32>,
    /// Time that a node must have been up before tasks move to it (ms|s|m|h) [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = units::time)]
    rebalance_settle: Option<Duration>,
}

impl Settings {
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
            return Err(UsageError(
                "update and rollback configuration is not supported for jobs".into(),
            ));
        }
        self.rebalance.apply(spec);
        if self.replicas_max_per_node.is_some_and(|most| most > 0) && spec.mode.is_global() {
            return Err(UsageError(
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
        if self.restart.restart_condition.is_some() {
            restart.condition = self.restart.restart_condition;
        }
        if mode.is_job() && restart.condition == Some(RestartCondition::Any) {
            return Err(UsageError::flag(
                "restart-condition",
                "a job's tasks are meant to end: use none or on-failure",
            ));
        }
        set(&mut restart.delay, self.restart.restart_delay);
        set(&mut restart.max_attempts, self.restart.restart_max_attempts);
        set(&mut restart.window, self.restart.restart_window);
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
            (None, None) => return Err(UsageError("--log-opt needs --log-driver".into())),
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

impl UpdatePolicyFlags {
    fn is_given(&self) -> bool {
        let mut config = UpdateConfig::default();
        self.apply(&mut config);
        config != UpdateConfig::default()
    }

    fn apply(&self, config: &mut UpdateConfig) {
        set(&mut config.parallelism, self.update_parallelism);
        set(&mut config.delay, self.update_delay);
        set(&mut config.monitor, self.update_monitor);
        set(&mut config.failure_action, self.update_failure_action);
        set(&mut config.max_failure_ratio, self.update_max_failure_ratio);
        set(&mut config.order, self.update_order);
        set(&mut config.progress_deadline, self.update_progress_deadline);
    }
}

impl RollbackPolicyFlags {
    fn is_given(&self) -> bool {
        let mut config = UpdateConfig::default();
        self.apply(&mut config);
        config != UpdateConfig::default()
    }

    fn apply(&self, config: &mut UpdateConfig) {
        set(&mut config.parallelism, self.rollback_parallelism);
        set(&mut config.delay, self.rollback_delay);
        set(&mut config.monitor, self.rollback_monitor);
        set(&mut config.failure_action, self.rollback_failure_action);
        set(&mut config.max_failure_ratio, self.rollback_max_failure_ratio);
        set(&mut config.order, self.rollback_order);
        set(&mut config.progress_deadline, self.rollback_progress_deadline);
    }
}

impl RebalanceFlags {
    fn apply(&self, spec: &mut ServiceSpec) {
        let config = &mut spec.rebalance_config;
        set(&mut config.automatic, self.rebalance_automatic);
        set(&mut config.max_moves, self.rebalance_max_moves);
        set(&mut config.settle, self.rebalance_settle);
    }
}

impl HealthFlags {
    fn apply(&self, healthcheck: &mut Option<HealthCheck>) -> Result<(), UsageError> {
        let has_times = self.health_interval.is_some()
            || self.health_timeout.is_some()
            || self.health_retries.is_some()
            || self.health_start_period.is_some()
            || self.health_start_interval.is_some();
        let test = self
            .health_cmd
            .clone()
            .map(Probe::Shell)
            .or_else(|| self.health_http.clone())
            .or_else(|| self.health_tcp.map(|port| Probe::Tcp { port }));
        if self.no_healthcheck == Some(true) {
            if has_times || test.is_some() {
                return Err(UsageError(
                    "--no-healthcheck conflicts with --health-* options".into(),
                ));
            }
            *healthcheck = Some(new_check(Probe::None));
            return Ok(());
        }
        match (test, &mut *healthcheck) {
            // An empty command leaves it to the image again.
            (Some(Probe::Shell(line)), check) if line.is_empty() => {
                *check = None;
                return Ok(());
            }
            (Some(test), Some(check)) => check.test = test,
            (Some(test), check) => *check = Some(new_check(test)),
            (None, Some(check)) if self.no_healthcheck == Some(false) && check.test == Probe::None => {
                *healthcheck = None;
            }
            (None, _) => {}
        }
        match healthcheck {
            Some(check) => {
                set(&mut check.interval, self.health_interval);
                set(&mut check.timeout, self.health_timeout);
                set(&mut check.retries, self.health_retries);
                set(&mut check.start_period, self.health_start_period);
                set(&mut check.start_interval, self.health_start_interval);
                Ok(())
            }
            None if has_times => Err(UsageError(
                "the times of a health check need the check: add --health-cmd, --health-http or --health-tcp"
                    .into(),
            )),
            None => Ok(()),
        }
    }
}

/// A check with docker's times.
pub(crate) fn new_check(test: Probe) -> HealthCheck {
    HealthCheck {
        test,
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(30),
        retries: 3,
        start_period: Duration::ZERO,
        start_interval: Duration::from_secs(5),
    }
}

/// As docker's engine names capabilities: in capitals; `CAP_` is implied.
pub(crate) fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)
}

fn http_probe(text: &str) -> Result<Probe, String> {
    let (port, path) = text.find('/').map_or((text, "/"), |slash| text.split_at(slash));
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Probe::Http {
            port,
            path: path.to_owned(),
        }),
        _ => Err(format!(
            "{text:?} is no probe: use a port and a path, such as 8080/health"
        )),
    }
}

/// A word as the specification's JSON has it.
fn word<T: DeserializeOwned>(text: String) -> Result<T, serde_json::Error> {
    serde_json::from_value(text.into())
}

fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}
