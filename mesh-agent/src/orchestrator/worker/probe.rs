//! The HTTP and TCP health checks, which the agent makes from outside the container. The health is a pure
//! function of the results; only `watch` does I/O.

use std::{net::Ipv4Addr, time::Duration};

use mesh_orchestrator::{
    objects::{TaskId, Timestamp},
    spec::{HealthCheck, Probe},
};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    health::attempt::{Failure, Prober},
    orchestrator::runtime::{Health, now},
};

/// The first interval is short, as most containers are ready within a second.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);

/// The health after the checks so far.
#[derive(Clone, Copy, Debug)]
struct ProbedHealth {
    began: Timestamp,
    current: Health,
    failures: u32,
    checks: u32,
}

impl ProbedHealth {
    fn new(began: Timestamp) -> Self {
        Self {
            began,
            current: Health::Starting,
            failures: 0,
            checks: 0,
        }
    }

    /// Adds a result. Before the first success only time counts: the short first intervals must not make a
    /// container fail sooner.
    fn add(&mut self, check: &HealthCheck, success: bool, now: Timestamp) {
        self.checks = self.checks.saturating_add(1);
        if success {
            self.current = Health::Healthy;
            self.failures = 0;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let given_up = match self.current {
            Health::Healthy => self.failures >= check.retries,
            Health::Starting | Health::Unchecked => {
                let patience = check.interval.saturating_mul(check.retries);
                now.since(self.began) >= check.start_period.saturating_add(patience)
            }
            Health::Unhealthy => true,
        };
        if given_up {
            self.current = Health::Unhealthy;
        }
    }

    /// Time until the next check.
    fn interval(&self, check: &HealthCheck) -> Duration {
        match self.current {
            Health::Healthy | Health::Unhealthy => check.interval,
            Health::Starting | Health::Unchecked => FIRST_INTERVAL
                .saturating_mul(1 << self.checks.min(8))
                .min(check.start_interval)
                .min(check.interval),
        }
    }
}

/// Whether the agent makes this check.
pub(super) fn is_ours(check: Option<&HealthCheck>) -> bool {
    check.is_some_and(|check| matches!(check.test, Probe::Http { .. } | Probe::Tcp { .. }))
}

/// Checks until aborted, and sends each change of the health. A container without an address fails each
/// check.
pub(super) async fn watch(
    task: TaskId,
    check: HealthCheck,
    address: Option<Ipv4Addr>,
    results: mpsc::Sender<(TaskId, Health)>,
) {
    let mut health = ProbedHealth::new(now());
    let Ok(prober) = Prober::new() else {
        // Without the HTTP client, which lacks nothing that a node may lack, no check can be made.
        let _ = results.send((task, Health::Unhealthy)).await;
        return;
    };
    loop {
        let result = match (&check.test, address) {
            (Probe::None | Probe::Command(_) | Probe::Shell(_), _) => return,
            // Any other address would be another's: 0.0.0.0 is this node.
            (Probe::Tcp { .. } | Probe::Http { .. }, None) => None,
            (Probe::Tcp { port }, Some(address)) => Some(prober.tcp(address, *port, check.timeout).await),
            (Probe::Http { port, path }, Some(address)) => {
                Some(prober.http(address, *port, path, check.timeout).await)
            }
        };
        let before = health.current;
        // What this node did late says nothing of the container.
        if result != Some(Err(Failure::Late)) {
            health.add(&check, result.is_some_and(|result| result.is_ok()), now());
        }
        if health.current != before && results.send((task.clone(), health.current)).await.is_err() {
            return;
        }
        sleep(health.interval(&check)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        serde_json::from_str(
            r#"{"test": {"tcp": {"port": 80}}, "interval": "10s", "retries": 3, "start_period": "5s",
                "start_interval": "2s"}"#,
        )
        .unwrap()
    }

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    #[test]
    fn a_slow_start_may_take_as_long_as_all_retries() {
        let mut health = ProbedHealth::new(seconds(0));
        for second in 1..35 {
            health.add(&check(), false, seconds(second));
            assert_eq!(health.current, Health::Starting, "after {second} s");
        }
        health.add(&check(), false, seconds(35));
        assert_eq!(health.current, Health::Unhealthy);
    }

    #[test]
    fn a_healthy_container_turns_unhealthy_after_consecutive_failures() {
        let mut health = ProbedHealth::new(seconds(0));
        for (success, expected) in [
            (true, Health::Healthy),
            (false, Health::Healthy),
            (false, Health::Healthy),
            (true, Health::Healthy),
            (false, Health::Healthy),
            (false, Health::Healthy),
            (false, Health::Unhealthy),
            (true, Health::Healthy),
        ] {
            health.add(&check(), success, seconds(1));
            assert_eq!(health.current, expected);
        }
    }

    #[test]
    fn the_first_checks_are_close_together() {
        let mut health = ProbedHealth::new(seconds(0));
        let intervals: Vec<_> = (0..5)
            .map(|_| {
                let interval = health.interval(&check());
                health.add(&check(), false, seconds(0));
                interval.as_millis()
            })
            .collect();
        assert_eq!(intervals, [250, 500, 1000, 2000, 2000]);
        health.add(&check(), true, seconds(0));
        assert_eq!(health.interval(&check()), Duration::from_secs(10));
    }

    /// A listener at an address, and the check that connects to its port.
    async fn of_a_listener(address: Ipv4Addr) -> (tokio::net::TcpListener, HealthCheck) {
        let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let check = HealthCheck {
            test: Probe::Tcp { port },
            ..check()
        };
        (listener, check)
    }

    #[tokio::test]
    async fn a_listener_makes_a_container_healthy() {
        let (_listener, check) = of_a_listener(Ipv4Addr::LOCALHOST).await;
        let (sender, mut results) = mpsc::channel(1);
        let watching = tokio::spawn(watch(
            TaskId::from("t1"),
            check,
            Some(Ipv4Addr::LOCALHOST),
            sender,
        ));
        assert_eq!(results.recv().await, Some((TaskId::from("t1"), Health::Healthy)));
        watching.abort();
    }

    #[tokio::test]
    async fn a_container_without_an_address_is_not_looked_for_on_the_node() {
        let (_listener, check) = of_a_listener(Ipv4Addr::UNSPECIFIED).await;
        let (sender, mut results) = mpsc::channel(1);
        let check = HealthCheck {
            interval: Duration::from_millis(10),
            start_period: Duration::ZERO,
            ..check
        };
        let watching = tokio::spawn(watch(TaskId::from("t1"), check, None, sender));
        assert_eq!(
            results.recv().await,
            Some((TaskId::from("t1"), Health::Unhealthy))
        );
        watching.abort();
    }
}
