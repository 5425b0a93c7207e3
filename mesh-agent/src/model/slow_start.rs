//! Which replicas are new, and what share of new connections they get while they are. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Checks, TaskId, TaskState};

/// The parts of a full share. A new replica begins with one, and gets one more each time as much of its
/// service's slow start has passed.
pub const FULL_SHARE: u8 = 10;

/// Since when replicas work, as this node has seen it.
#[derive(Debug, Default)]
pub struct SlowStart {
    /// Those that work, and since when; `None` if for as long as this node knows. Nothing is known before
    /// the first observation.
    working: Option<BTreeMap<TaskId, Option<Instant>>>,
}

/// The shares at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Of replicas that have less than [`FULL_SHARE`].
    pub of_new: BTreeMap<TaskId, u8>,
    /// When one of them next grows.
    pub next: Option<Instant>,
}

impl SlowStart {
    /// Takes over which replicas work: they are meant to run, and pass their check. One that did not before
    /// is new, but not to a node that has just begun to look.
    pub fn observe(&mut self, checks: Checks<'_>, now: Instant) -> Shares {
        let before = self.working.take();
        let mut shares = Shares::default();
        let mut working = BTreeMap::new();
        for (id, task) in &checks.cluster.tasks {
            if task.state != TaskState::Active || checks.failure(id).is_some() {
                continue;
            }
            let since = match &before {
                None => None,
                Some(before) => before.get(id).copied().unwrap_or(Some(now)),
            };
            working.insert(id.clone(), since);
            let service = checks.cluster.services.get(&task.service);
            if let (Some(since), Some(seconds)) =
                (since, service.and_then(|found| found.balance.slow_start()))
            {
                shares.add(id, now.saturating_duration_since(since), seconds, now);
            }
        }
        self.working = Some(working);
        shares
    }
}

impl Shares {
    /// Adds a replica that has been there for some time.
    fn add(&mut self, id: &TaskId, age: Duration, slow_start: u32, now: Instant) {
        let step = Duration::from_secs(slow_start.into()) / u32::from(FULL_SHARE);
        let steps = age.as_nanos() / step.as_nanos().max(1);
        let Ok(steps) = u8::try_from(steps) else {
            return;
        };
        let share = steps.saturating_add(1);
        if share >= FULL_SHARE {
            return;
        }
        let next = now + step * u32::from(share) - age;
        self.next = Some(self.next.map_or(next, |earlier| earlier.min(next)));
        self.of_new.insert(id.clone(), share);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{Balance, Cluster, FailedChecks, HealthCheck, HealthProbe, Service, Task, Weights};

    const OWN: &str = "n1";

    fn cluster(tasks: &[(&str, TaskState)]) -> Cluster {
        let service = Service {
            name: "web".to_owned(),
            ports: Vec::new(),
            balance: Balance {
                slow_start: Some(20),
                ..Balance::default()
            },
            weights: Weights::default(),
            health: Some(HealthCheck {
                probe: HealthProbe::Tcp,
                port: 80,
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                fall: 3,
                rise: 2,
            }),
            clients: Default::default(),
            idle: Default::default(),
            publish_on: Default::default(),
            limits: Default::default(),
            drain_timeout: None,
            invalid_labels: Vec::new(),
        };
        let tasks = tasks.iter().map(|(id, state)| {
            let task = Task {
                service: "s1".to_owned(),
                name: (*id).to_owned(),
                slot: None,
                node: OWN.to_owned(),
                address: Ipv4Addr::LOCALHOST,
                state: *state,
            };
            ((*id).to_owned(), task)
        });
        Cluster {
            services: [("s1".to_owned(), service)].into(),
            tasks: tasks.collect(),
            ..Cluster::default()
        }
    }

    fn shares(slow_start: &mut SlowStart, cluster: &Cluster, failed: &[&str], now: Instant) -> Shares {
        let mut checks = FailedChecks::default();
        for task in failed {
            assert!(checks.insert((*task).to_owned(), "it does"));
        }
        let own = OWN.to_owned();
        let checks = Checks {
            cluster,
            own: &own,
            failed: &checks,
        };
        slow_start.observe(checks, now)
    }

    fn of(shares: &Shares) -> Vec<(&str, u8)> {
        let shares = shares.of_new.iter();
        shares.map(|(id, share)| (id.as_str(), *share)).collect()
    }

    #[test]
    fn a_new_replicas_share_grows_in_ten_steps() {
        let (mut slow_start, start) = (SlowStart::default(), Instant::now());
        let old = cluster(&[("t1", TaskState::Active)]);
        assert_eq!(shares(&mut slow_start, &old, &[], start), Shares::default());
        let both = cluster(&[("t1", TaskState::Active), ("t2", TaskState::Active)]);
        for (seconds, share) in [(0, 1), (1, 1), (2, 2), (3, 2), (17, 9)] {
            let now = start + Duration::from_secs(seconds);
            let found = shares(&mut slow_start, &both, &[], now);
            assert_eq!(of(&found), [("t2", share)], "after {seconds} s");
            let next = start + Duration::from_secs(2 * u64::from(share));
            assert_eq!(found.next, Some(next), "after {seconds} s");
        }
        let now = start + Duration::from_secs(18);
        assert_eq!(shares(&mut slow_start, &both, &[], now), Shares::default());
        let later = start + Duration::from_secs(1_000_000);
        assert_eq!(shares(&mut slow_start, &both, &[], later), Shares::default());
    }

    #[test]
    fn a_node_that_begins_to_look_takes_no_replica_for_new() {
        let (mut slow_start, start) = (SlowStart::default(), Instant::now());
        let both = cluster(&[("t1", TaskState::Active), ("t2", TaskState::Active)]);
        assert_eq!(shares(&mut slow_start, &both, &[], start), Shares::default());
    }

    #[test]
    fn a_replica_that_passes_its_check_again_is_new_and_one_that_failed_is_not_counted() {
        let (mut slow_start, start) = (SlowStart::default(), Instant::now());
        let both = cluster(&[("t1", TaskState::Active), ("t2", TaskState::Active)]);
        shares(&mut slow_start, &both, &[], start);
        assert_eq!(of(&shares(&mut slow_start, &both, &["t1"], start)), []);
        assert_eq!(of(&shares(&mut slow_start, &both, &[], start)), [("t1", 1)]);
    }

    #[test]
    fn a_hash_gives_new_replicas_their_full_share() {
        let (mut slow_start, start) = (SlowStart::default(), Instant::now());
        shares(&mut slow_start, &cluster(&[]), &[], start);
        let mut hashed = cluster(&[("t1", TaskState::Active)]);
        let service = hashed.services.get_mut("s1").unwrap();
        service.balance.affinity = Some(60);
        assert_eq!(shares(&mut slow_start, &hashed, &[], start), Shares::default());
        service_without_affinity(&mut hashed);
        assert_eq!(of(&shares(&mut slow_start, &hashed, &[], start)), [("t1", 1)]);
    }

    fn service_without_affinity(cluster: &mut Cluster) {
        for service in cluster.services.values_mut() {
            service.balance.affinity = None;
        }
    }
}
