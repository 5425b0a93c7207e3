//! Interprets the engine's answers about containers and itself. Pure.

use std::{net::Ipv4Addr, time::Duration};

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary, HealthStatusEnum,
    NetworkSettings, SystemInfo,
};
use mesh_orchestrator::{
    objects::TaskId,
    spec::{Platform, Resources},
};

use super::{ContainerFacts, EngineDescription, Health, ListedContainer, Phase, label};

/// The default of the engine and of Swarm.
const STOP_GRACE: Duration = Duration::from_secs(10);
const STOP_SIGNAL: &str = "SIGTERM";

/// `None` if the container is not the orchestrator's, or is being removed.
pub(super) fn container(inspected: &ContainerInspectResponse) -> Option<ContainerFacts> {
    let config = inspected.config.as_ref()?;
    let labels = config.labels.as_ref()?;
    let state = inspected.state.as_ref()?;
    let running = phase(state)?;
    let given = |signal: &&String| !signal.is_empty();
    let grace = config
        .stop_timeout
        .and_then(|seconds| u64::try_from(seconds).ok());
    let host_network = inspected
        .host_config
        .as_ref()
        .is_some_and(|host| host.network_mode.as_deref() == Some("host"));
    Some(ContainerFacts {
        id: inspected.id.clone()?,
        task: TaskId::from(labels.get(label::TASK)?.as_str()),
        address: labels.get(label::ADDRESS).and_then(|text| text.parse().ok()),
        pid: state
            .pid
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0),
        reached_at: if host_network {
            Some(Ipv4Addr::LOCALHOST)
        } else {
            inspected.network_settings.as_ref().and_then(address)
        },
        phase: running,
        health: health(state),
        stop_signal: config
            .stop_signal
            .as_ref()
            .filter(given)
            .map_or_else(|| STOP_SIGNAL.to_owned(), Clone::clone),
        stop_grace: grace.map_or(STOP_GRACE, Duration::from_secs),
    })
}

/// `None` if the container is not the orchestrator's.
pub(super) fn listed(container: ContainerSummary) -> Option<ListedContainer> {
    let labels = container.labels?;
    Some(ListedContainer {
        id: container.id?,
        task: TaskId::from(labels.get(label::TASK)?.as_str()),
        address: labels.get(label::ADDRESS).and_then(|text| text.parse().ok()),
    })
}

fn phase(state: &ContainerState) -> Option<Phase> {
    match state.status? {
        ContainerStateStatusEnum::CREATED => Some(Phase::Created),
        // A paused container keeps its resources and connections.
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::STOPPING
        | ContainerStateStatusEnum::RESTARTING => Some(Phase::Running),
        ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD => Some(Phase::Exited {
            code: state
                .exit_code
                .and_then(|code| i32::try_from(code).ok())
                .unwrap_or(-1),
            out_of_memory: state.oom_killed.unwrap_or_default(),
            error: state.error.clone().unwrap_or_default(),
        }),
        ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::EMPTY => None,
    }
}

fn health(state: &ContainerState) -> Health {
    match state.health.as_ref().and_then(|health| health.status) {
        None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) => Health::Unchecked,
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
    }
}

/// The address on the first network, in order of name, that has one.
fn address(settings: &NetworkSettings) -> Option<Ipv4Addr> {
    let mut addresses: Vec<_> = settings
        .networks
        .iter()
        .flatten()
        .filter_map(|(name, endpoint)| Some((name, endpoint.ip_address.as_ref()?.parse().ok()?)))
        .collect();
    addresses.sort_unstable();
    addresses.first().map(|(_, address)| *address)
}

/// The machine as `docker info` describes it.
pub(super) fn engine(info: SystemInfo) -> EngineDescription {
    let labels = info.labels.unwrap_or_default();
    let label = |label: String| match label.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (label, String::new()),
    };
    let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    EngineDescription {
        hostname: info.name.unwrap_or_default(),
        labels: labels.into_iter().map(label).collect(),
        platform: Platform {
            os: info.os_type.unwrap_or_default(),
            architecture: info.architecture.unwrap_or_default(),
        },
        resources: Resources {
            nano_cpus: number(info.ncpu).saturating_mul(1_000_000_000),
            memory_bytes: number(info.mem_total),
        },
        version: info.server_version.unwrap_or_default(),
        swarm: info
            .swarm
            .and_then(|swarm| swarm.local_node_state)
            .map_or_else(|| "inactive".to_owned(), |state| state.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: &str) -> Option<ContainerFacts> {
        let text = format!(
            r#"{{"Id": "0a1b", "State": {state},
                "HostConfig": {{"NetworkMode": "bridge"}},
                "Config": {{"Labels": {{"mesh.task.id": "t1", "mesh.task.address": "240.0.0.9"}},
                            "StopSignal": "SIGQUIT", "StopTimeout": 3}},
                "NetworkSettings": {{"Networks": {{"bridge": {{"IPAddress": "172.17.0.2"}}}}}}}}"#
        );
        container(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_running_container_is_read() {
        let facts = facts(r#"{"Status": "running", "Pid": 77, "Health": {"Status": "starting"}}"#).unwrap();
        assert_eq!(facts.task, TaskId::from("t1"));
        assert_eq!((facts.phase, facts.health), (Phase::Running, Health::Starting));
        assert_eq!(facts.pid, Some(77));
        assert_eq!(facts.reached_at, Some(Ipv4Addr::new(172, 17, 0, 2)));
        assert_eq!(facts.address, Some(Ipv4Addr::new(240, 0, 0, 9)));
        assert_eq!(facts.stop_signal, "SIGQUIT");
        assert_eq!(facts.stop_grace, Duration::from_secs(3));
    }

    #[test]
    fn an_exited_container_has_its_code_and_reason() {
        let facts = facts(r#"{"Status": "exited", "ExitCode": 137, "OOMKilled": true, "Pid": 0}"#).unwrap();
        let expected = Phase::Exited {
            code: 137,
            out_of_memory: true,
            error: String::new(),
        };
        assert_eq!((facts.phase, facts.pid), (expected, None));
    }

    #[test]
    fn a_container_that_is_being_removed_is_gone() {
        assert_eq!(facts(r#"{"Status": "removing"}"#), None);
    }

    #[test]
    fn an_engine_is_described() {
        let info = serde_json::from_str(
            r#"{"Name": "n1", "NCPU": 4, "MemTotal": 1024, "OSType": "linux", "Architecture": "x86_64",
                "Labels": ["zone=a", "fast"], "Swarm": {"LocalNodeState": "inactive"}}"#,
        );
        let engine = engine(info.unwrap());
        assert_eq!(engine.resources.nano_cpus, 4_000_000_000);
        assert_eq!(engine.labels["zone"], "a");
        assert_eq!(engine.labels["fast"], "");
        assert_eq!(engine.swarm, "inactive");
    }
}
