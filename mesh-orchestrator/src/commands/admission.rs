//! Whether a valid specification fits the cluster as it is: ports, dependencies, the one service of agents.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    objects::{EndpointPort, ObjectChange, Service, State},
    spec::{ServiceSpec, SpecError, TaskRuntime, check_dependencies},
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
        state
            .publisher(protocol, port)
            .map(|service| service.spec.name.as_str())
    })?;
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
