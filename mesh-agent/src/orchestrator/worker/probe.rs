//! The health checks that the agent makes itself: HTTP and TCP, from outside the container. The verdict is
//! a pure function of the tries; only `watch` does I/O.

use std::{net::Ipv4Addr, time::Duration};

use mesh_orchestrator::{
    objects::{TaskId, Timestamp},
    spec::{HealthCheck, Probe},
};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::orchestrator::runtime::{Health, now};

/// The first tries come in quick succession, for most containers are ready within a second.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);

/// What the tries so far have shown.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    began: Timestamp,
    health: Health,
    failures: u32,
    tries: u32,
}

impl Verdict {
    fn new(began: Timestamp) -> Self {
        Self {
            began,
            health: Health::Starting,
            failures: 0,
            tries: 0,
        }
    }

    /// Another try has ended. Before the first success nothing counts but time: what is tried more often
    /// then is not given up sooner.
    fn tried(&mut self, check: &HealthCheck, success: bool, now: Timestamp) {
        self.tries = self.tries.saturating_add(1);
        if success {
            self.health = Health::Healthy;
            self.failures = 0;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let given_up = match self.health {
            Health::Healthy => self.failures >= check.retries,
            Health::Starting | Health::Unchecked => {
                let patience = check.interval.saturating_mul(check.retries);
                now.since(self.began) >= check.start_period.saturating_add(patience)
            }
            Health::Unhealthy => true,
        };
        if given_up {
            self.health = Health::Unhealthy;
        }
    }

    /// Time to the next try.
    fn interval(&self, check: &HealthCheck) -> Duration {
        match self.health {
            Health::Healthy | Health::Unhealthy => check.interval,
            Health::Starting | Health::Unchecked => FIRST_INTERVAL
                .saturating_mul(1 << self.tries.min(8))
                .min(check.start_interval)
                .min(check.interval),
        }
    }
}

/// Whether the agent makes this check.
pub(super) fn is_ours(check: Option<&HealthCheck>) -> bool {
    check.is_some_and(|check| matches!(check.test, Probe::Http { .. } | Probe::Tcp { .. }))
}

/// Tries until aborted, and tells each change of the verdict.
pub(super) async fn watch(
    task: TaskId,
    check: HealthCheck,
    address: Ipv4Addr,
    verdicts: mpsc::Sender<(TaskId, Health)>,
) {
    let mut verdict = Verdict::new(now());
    // No proxy: the container is on this node. No redirection: it may lead anywhere.
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build();
    loop {
        let success = match (&check.test, &client) {
            (Probe::Tcp { port }, _) => {
                let connected = timeout(check.timeout, TcpStream::connect((address, *port))).await;
                matches!(connected, Ok(Ok(_)))
            }
            (Probe::Http { port, path }, Ok(client)) => {
                let request = client.get(format!("http://{address}:{port}{path}")).send();
                let answer = timeout(check.timeout, request).await;
                answer.is_ok_and(|answer| {
                    answer.is_ok_and(|answer| (200..400).contains(&answer.status().as_u16()))
                })
            }
            (Probe::Http { .. }, Err(_)) => false,
            (Probe::None | Probe::Command(_) | Probe::Shell(_), _) => return,
        };
        let before = verdict.health;
        verdict.tried(&check, success, now());
        if verdict.health != before && verdicts.send((task.clone(), verdict.health)).await.is_err() {
            return;
        }
        sleep(verdict.interval(&check)).await;
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
    fn a_slow_start_is_waited_for_as_long_as_retries_would_take() {
        let mut verdict = Verdict::new(seconds(0));
        for second in 1..35 {
            verdict.tried(&check(), false, seconds(second));
            assert_eq!(verdict.health, Health::Starting, "after {second} s");
        }
        verdict.tried(&check(), false, seconds(35));
        assert_eq!(verdict.health, Health::Unhealthy);
    }

    #[test]
    fn a_healthy_container_has_to_fail_so_many_times_in_a_row() {
        let mut verdict = Verdict::new(seconds(0));
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
            verdict.tried(&check(), success, seconds(1));
            assert_eq!(verdict.health, expected);
        }
    }

    #[test]
    fn the_first_tries_are_close_together() {
        let mut verdict = Verdict::new(seconds(0));
        let intervals: Vec<_> = (0..5)
            .map(|_| {
                let interval = verdict.interval(&check());
                verdict.tried(&check(), false, seconds(0));
                interval.as_millis()
            })
            .collect();
        assert_eq!(intervals, [250, 500, 1000, 2000, 2000]);
        verdict.tried(&check(), true, seconds(0));
        assert_eq!(verdict.interval(&check()), Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_listener_makes_a_container_healthy() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, mut verdicts) = mpsc::channel(1);
        let check = HealthCheck {
            test: Probe::Tcp { port },
            ..check()
        };
        let watching = tokio::spawn(watch(TaskId::from("t1"), check, Ipv4Addr::LOCALHOST, sender));
        assert_eq!(verdicts.recv().await, Some((TaskId::from("t1"), Health::Healthy)));
        watching.abort();
    }
}
