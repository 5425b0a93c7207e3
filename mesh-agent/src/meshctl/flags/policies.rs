//! Flags for policies that `service create` and `service update` share: restart, update, rollback, health,
//! rebalancing. Pure.

use std::time::Duration;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use mesh_orchestrator::spec::{
    FailureAction, HealthCheck, Probe, RestartCondition, RestartPolicy, ServiceSpec, UpdateConfig,
    UpdateOrder,
};
use serde::de::DeserializeOwned;

use super::{UsageError, fields, units};

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(super) struct RestartFlags {
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
pub(super) struct UpdatePolicyFlags {
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
pub(super) struct RollbackPolicyFlags {
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
pub(super) struct HealthFlags {
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
pub(super) struct RebalanceFlags {
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

impl RestartFlags {
    pub(super) fn apply(&self, policy: &mut RestartPolicy) {
        if self.restart_condition.is_some() {
            policy.condition = self.restart_condition;
        }
        set(&mut policy.delay, self.restart_delay);
        set(&mut policy.max_attempts, self.restart_max_attempts);
        set(&mut policy.window, self.restart_window);
    }
}

impl UpdatePolicyFlags {
    pub(super) fn is_given(&self) -> bool {
        let mut config = UpdateConfig::default();
        self.apply(&mut config);
        config != UpdateConfig::default()
    }

    pub(super) fn apply(&self, config: &mut UpdateConfig) {
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
    pub(super) fn is_given(&self) -> bool {
        let mut config = UpdateConfig::default();
        self.apply(&mut config);
        config != UpdateConfig::default()
    }

    pub(super) fn apply(&self, config: &mut UpdateConfig) {
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
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let config = &mut spec.rebalance_config;
        set(&mut config.automatic, self.rebalance_automatic);
        set(&mut config.max_moves, self.rebalance_max_moves);
        set(&mut config.settle, self.rebalance_settle);
    }
}

impl HealthFlags {
    pub(super) fn apply(&self, healthcheck: &mut Option<HealthCheck>) -> Result<(), UsageError> {
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
                return Err(UsageError::Line(
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
            None if has_times => Err(UsageError::Line(
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

pub(super) fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}
