//! Whether a valid specification fits the cluster as it is: ports, dependencies, the one service of agents.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    objects::{EndpointPort, ObjectChange, Service, State},
    spec::{Protocol, PublishMode, ServiceSpec, SpecError, TaskRuntime, check_dependencies},
};

/// Assigns ports to a specification. Refuses one whose dependencies form a cycle, and a second service of
/// agents.
pub(super) fn admit(
    state: &State,
    spec: &ServiceSpec,
    changes: &mut Vec<ObjectChange>,
) -> Result<Vec<EndpointPort>, SpecError> {
    let mut ledger = state.port_ledger().clone();
    let ports = ledger.allocate(spec, |protocol, port| {
        let routed = state.publisher(protocol, port);
        let holder = routed.or_else(|| on_hosts(state, spec, protocol, port));
        holder.map(|service| service.spec.name.as_str())
    })?;
    check_host_ports(state, spec, &ports)?;
    if !spec.depends_on.is_empty() {
        let mut graph: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for other in state
            .services()
            .values()
            .map(|service| &*service.spec)
            .chain([spec])
        {
            let names = other.depends_on.iter().map(String::as_str).collect();
            graph.insert(&other.name, names);
        }
        check_dependencies(&graph)?;
    }
    if spec.task_template.runtime == TaskRuntime::Agent {
        let is_agents = |other: &&Arc<Service>| {
            other.spec.task_template.runtime == TaskRuntime::Agent && other.spec.name != spec.name
        };
        if let Some(other) = state.services().values().find(is_agents) {
            return Err(SpecError::invalid(
                "task_template.runtime",
                TaskRuntime::Agent.name(),
                format!(
                    "container: service {} already manages the nodes' agents",
                    other.spec.name
                ),
            ));
        }
    }
    if ledger != *state.port_ledger() {
        changes.push(ObjectChange::PutPorts(ledger));
    }
    Ok(ports)
}

/// Another service that publishes a port in host mode: where its tasks run, the mesh would take their
/// clients.
fn on_hosts<'a>(
    state: &'a State,
    spec: &ServiceSpec,
    protocol: Protocol,
    port: u16,
) -> Option<&'a Arc<Service>> {
    let is_port = |other: &EndpointPort| {
        other.publish_mode == PublishMode::Host && other.protocol == protocol && other.published_port == port
    };
    let mut others = state
        .services()
        .values()
        .filter(|other| other.spec.name != spec.name);
    others.find(|other| other.ports.iter().any(is_port))
}

/// Refuses ports in host mode that the mesh answers on every node. Two services may publish the same one:
/// their tasks run on different nodes.
fn check_host_ports(state: &State, spec: &ServiceSpec, ports: &[EndpointPort]) -> Result<(), SpecError> {
    for port in ports.iter().filter(|port| port.publish_mode == PublishMode::Host) {
        let holder = state.publisher(port.protocol, port.published_port);
        if let Some(other) = holder.filter(|other| other.spec.name != spec.name) {
            return Err(SpecError::invalid(
                "endpoint_spec.ports.published_port",
                port.published_port,
                format!(
                    "another port: service {} already publishes this one on every node",
                    other.spec.name
                ),
            ));
        }
    }
    Ok(())
}
