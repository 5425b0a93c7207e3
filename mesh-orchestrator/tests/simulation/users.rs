//! The simulated users: they create, change, scale, roll back and remove services, working and failing ones.

use std::collections::BTreeSet;

use crate::random::Random;
use mesh_orchestrator::{
    commands,
    objects::{ObjectChange, Service, ServiceId, State, Timestamp},
    spec::ServiceSpec,
};

/// The largest number of services at a time.
const MAX_SERVICES: usize = 5;

/// What users asked for.
#[derive(Debug, Default)]
pub(crate) struct Users {
    created: u64,
    /// Services that were created and not removed.
    pub(crate) services: BTreeSet<ServiceId>,
}

impl Users {
    /// A user does something.
    pub(crate) fn act(
        &mut self,
        random: &mut Random,
        state: &State,
        now: Timestamp,
    ) -> Result<Vec<ObjectChange>, String> {
        let ids: Vec<&ServiceId> = state.services().keys().collect();
        if ids.is_empty() || (ids.len() < MAX_SERVICES && random.chance(1, 4)) {
            return self.create(random, state, now);
        }
        let id = random.one_of(&ids);
        let Some(service) = state.service(id) else {
            return Ok(Vec::new());
        };
        let changes = match random.below(12) {
            0 => {
                self.services.remove(id);
                commands::remove_service(state, id)
            }
            1..=3 => commands::scale_service(state, id, u32::try_from(random.below(9)).unwrap_or(0), now),
            4 => commands::rollback_service(state, id, now),
            5 => commands::rebalance_service(state, id, now),
            _ => {
                let spec = change(random, service)?;
                commands::update_service(state, id, service.version, spec, now)
            }
        };
        // A refused change changes nothing.
        Ok(changes.unwrap_or_default())
    }

    fn create(
        &mut self,
        random: &mut Random,
        state: &State,
        now: Timestamp,
    ) -> Result<Vec<ObjectChange>, String> {
        self.created += 1;
        let spec = new_spec(random, self.created)?;
        let id = ServiceId::from(format!("service{}", self.created).as_str());
        match commands::create_service(state, id.clone(), spec, now) {
            Ok(changes) => {
                self.services.insert(id);
                Ok(changes)
            }
            Err(_) => Ok(Vec::new()),
        }
    }
}

pub(crate) fn new_spec(random: &mut Random, number: u64) -> Result<ServiceSpec, String> {
    // Names repeat, so that dependencies and ports are reused.
    let name = format!("s{}", number % 7);
    let mode = match random.below(10) {
        0..=5 => serde_json::json!({ "replicated": { "replicas": random.below(8) } }),
        6 | 7 => serde_json::json!({ "global": {} }),
        8 => {
            serde_json::json!({ "replicated_job": { "max_concurrent": random.between(1, 3), "total_completions": random.between(1, 6) } })
        }
        _ => serde_json::json!({ "global_job": {} }),
    };
    let is_job = mode.get("replicated_job").or(mode.get("global_job")).is_some();
    let mut task = serde_json::json!({
        "container_spec": { "image": if is_job { "job" } else { image(random) } },
        "resources": { "reservations": {
            "nano_cpus": random.one_of(&[0, 0, 250_000_000, 1_000_000_000]),
            "memory_bytes": random.one_of(&[0, 0, 256 << 20, 1_u64 << 30]),
        }},
        "restart_policy": {
            "condition": random.one_of(if is_job { &["none", "on-failure"] } else { &["any", "any", "any", "on-failure", "none"] }),
            "delay": random.one_of(&["0", "1s", "5s"]),
            "max_attempts": random.one_of(&[0, 0, 1, 3]),
            "window": random.one_of(&["0", "30s"]),
        },
        "placement": placement(random),
    });
    if is_job && random.chance(1, 2) {
        task["restart_policy"] = serde_json::json!({});
    }
    let mut spec = serde_json::json!({
        "name": name,
        "mode": mode,
        "task_template": task,
        "update_config": policy(random, &["pause", "continue", "rollback"]),
        "rollback_config": policy(random, &["pause", "continue"]),
        "rebalance_config": { "automatic": random.chance(1, 2), "settle": "10s", "max_moves": 3 },
    });
    if random.chance(1, 3) {
        spec["endpoint_spec"] = serde_json::json!({ "ports": [ { "target_port": 80 } ] });
    } else if random.chance(1, 6) {
        let port = random.between(8080, 8082);
        spec["endpoint_spec"] = serde_json::json!({ "ports": [ { "target_port": 80, "published_port": port, "publish_mode": "host" } ] });
    }
    if random.chance(1, 5) {
        let other = format!("s{}", random.below(7));
        if other != name {
            spec["depends_on"] = serde_json::json!([other]);
        }
    }
    read(&spec)
}

fn image(random: &mut Random) -> &'static str {
    random.one_of(&[
        "good", "good", "good", "good:2", "slow", "flaky", "crashing", "missing",
    ])
}

fn placement(random: &mut Random) -> serde_json::Value {
    let mut placement = serde_json::json!({});
    if random.chance(1, 5) {
        let constraint = random.one_of(&["node.labels.zone==a", "node.labels.zone!=b", "node.role==worker"]);
        placement["constraints"] = serde_json::json!([constraint]);
    }
    if random.chance(1, 4) {
        placement["preferences"] = serde_json::json!([{ "spread": "node.labels.zone" }]);
    }
    if random.chance(1, 6) {
        placement["max_replicas_per_node"] = random.between(1, 2).into();
    }
    if random.chance(1, 8) {
        placement["platforms"] = serde_json::json!([{ "os": "linux", "architecture": "amd64" }]);
    }
    placement
}

fn policy(random: &mut Random, actions: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "parallelism": random.below(4),
        "delay": random.one_of(&["0", "0", "2s"]),
        "failure_action": random.one_of(actions),
        "monitor": random.one_of(&["0", "2s", "5s"]),
        "max_failure_ratio": random.one_of(&[0.0, 0.0, 0.3]),
        "order": random.one_of(&["stop-first", "start-first"]),
        "progress_deadline": random.one_of(&["20s", "2m"]),
    })
}

pub(crate) fn change(random: &mut Random, service: &Service) -> Result<ServiceSpec, String> {
    let mut spec = serde_json::to_value(&*service.spec).unwrap_or_default();
    match random.below(6) {
        0 => spec["task_template"]["force_update"] = random.between(1, 1_000_000).into(),
        1 => spec["task_template"]["placement"] = placement(random),
        2 => spec["update_config"] = policy(random, &["pause", "continue", "rollback"]),
        3 => spec["labels"] = serde_json::json!({ "changed": random.number().to_string() }),
        _ if service.spec.mode.is_job() => {
            spec["task_template"]["force_update"] = random.between(1, 1_000_000).into();
        }
        _ => spec["task_template"]["container_spec"]["image"] = image(random).into(),
    }
    read(&spec)
}

/// The simulation generates valid specifications only: a refusal is a bug in it.
pub(crate) fn read(spec: &serde_json::Value) -> Result<ServiceSpec, String> {
    ServiceSpec::from_json(spec.to_string().as_bytes())
        .map_err(|error| format!("the simulation generated an invalid specification: {error}"))
}
