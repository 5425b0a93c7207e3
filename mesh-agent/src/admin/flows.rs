//! Which flows an operator asks for, and what they are, by the names of the agent's view. Pure.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{
    View,
    api::{self, DEFAULT_FLOWS, Flow, FlowBackend, FlowIngress, FlowQuery, Flows, MAX_FLOWS},
    routes::backend_address,
};
use crate::{
    datapath::flow_list::{FirstFlows, FlowFilter, Ingress, ListedFlow},
    model::{BackendKey, ServiceKey},
};

/// How many flows to list.
pub(super) fn limit(query: &FlowQuery) -> usize {
    query.limit.unwrap_or(DEFAULT_FLOWS).min(MAX_FLOWS)
}

/// The flows that a query is about.
///
/// # Errors
/// When it names what is not in the cluster.
pub(super) fn filter(view: &View, query: &FlowQuery) -> Result<FlowFilter, String> {
    Ok(FlowFilter {
        services: query
            .service
            .as_deref()
            .map(|name| services(view, name))
            .transpose()?,
        backends: query
            .backend
            .as_deref()
            .map(|name| backends(view, name))
            .transpose()?,
        client: query.client,
        protocol: query.protocol,
        state: query.state,
    })
}

pub(super) fn services(view: &View, name: &str) -> Result<BTreeSet<ServiceKey>, String> {
    let entries = view.desired.services.iter();
    let found: BTreeSet<_> = entries
        .filter(|(_, service)| service.name == name || service.id == name)
        .map(|(key, _)| *key)
        .collect();
    if found.is_empty() {
        return Err(format!(
            "no service with published ports has the name or id '{name}'; `meshctl routes` lists them"
        ));
    }
    Ok(found)
}

fn backends(view: &View, name: &str) -> Result<BTreeSet<BackendKey>, String> {
    let address = name.parse::<Ipv4Addr>().ok();
    let entries = view.desired.backends.iter();
    let found: BTreeSet<_> = entries
        .filter(|(key, backend)| {
            backend.task_name == name || backend.task == name || address == Some(key.address)
        })
        .map(|(key, _)| *key)
        .collect();
    // This node may have no way to it.
    let mut tasks = view.source.cluster.tasks.iter();
    let mut exists =
        || tasks.any(|(id, task)| id == name || task.name == name || address == Some(task.address));
    if found.is_empty() && !exists() {
        return Err(format!(
            "no replica has the name, id or address '{name}'; `meshctl routes` lists them"
        ));
    }
    Ok(found)
}

/// The flows with the names of what they are about.
pub(super) fn answer(view: &View, found: FirstFlows) -> Flows {
    let (flows, more) = found.finish();
    Flows {
        version: api::VERSION,
        node: view.node.clone(),
        hostname: view.hostname(),
        flows: flows.into_iter().map(|found| flow(view, found)).collect(),
        more,
    }
}

fn flow(view: &View, found: ListedFlow) -> Flow {
    let service = view.desired.services.get(&found.service());
    let (ingress, entry) = match found.ingress {
        Ingress::Network => (FlowIngress::Network, None),
        Ingress::Host => (FlowIngress::Host, None),
        Ingress::Container => (FlowIngress::Container, None),
        Ingress::Node(address) => (FlowIngress::Tunnel, Some(address)),
    };
    Flow {
        service: service.map(|service| service.name.clone()),
        protocol: found.protocol,
        client: found.client,
        frontend: found.frontend,
        presented: found.presented,
        backend: found.backend.map(|key| backend(view, &key)),
        state: found.state,
        idle_seconds: found.idle_seconds,
        ingress,
        entry_node: entry.map(|address| node_name(view, address)),
    }
}

/// A backend with the names of its task and node.
pub(super) fn backend(view: &View, key: &BackendKey) -> FlowBackend {
    match view.desired.backends.get(key) {
        Some(backend) => FlowBackend {
            task: backend.task_name.clone(),
            task_id: backend.task.clone(),
            node: backend.node_name.clone(),
            address: backend_address(key, backend),
        },
        // It has been removed from the snapshot since the flows were read.
        None => FlowBackend {
            task: key.address.to_string(),
            task_id: String::new(),
            node: String::new(),
            address: key.address.to_string(),
        },
    }
}

/// The host name of the node with an address.
pub(super) fn node_name(view: &View, address: Ipv4Addr) -> String {
    let mut nodes = view.source.cluster.nodes.values();
    nodes
        .find(|node| node.address == address)
        .map_or_else(|| address.to_string(), |node| node.hostname.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    fn list(query: &FlowQuery) -> Result<Flows, String> {
        let agent = fixture::still();
        let view = agent.view();
        let filter = filter(&view, query)?;
        Ok(answer(&view, agent.flows(&filter, limit(query)).unwrap()))
    }

    fn tasks(query: &FlowQuery) -> Vec<String> {
        let task = |flow: &Flow| flow.backend.as_ref().map_or("-".to_owned(), |it| it.task.clone());
        list(query).unwrap().flows.iter().map(task).collect()
    }

    #[test]
    fn a_flow_is_shown_with_the_names_of_service_replica_and_nodes() {
        let answer = list(&FlowQuery::default()).unwrap();
        assert_eq!((answer.hostname.as_str(), answer.more), ("n1", 0));
        let first = &answer.flows[0];
        assert_eq!(first.service.as_deref(), Some("web"));
        let backend = first.backend.as_ref().unwrap();
        assert_eq!(
            (
                backend.task.as_str(),
                backend.node.as_str(),
                backend.address.as_str()
            ),
            ("web.1", "n1", "10.0.0.5:80")
        );
        assert_eq!((first.ingress, &first.entry_node), (FlowIngress::Network, &None));
        let last = answer.flows.last().unwrap();
        assert_eq!(last.backend, None);
        assert_eq!(
            (last.ingress, last.entry_node.as_deref()),
            (FlowIngress::Tunnel, Some("n2"))
        );
    }

    #[test]
    fn services_and_replicas_are_found_by_name_id_and_address() {
        let backend = |name: &str| FlowQuery {
            backend: Some(name.to_owned()),
            ..FlowQuery::default()
        };
        for name in ["web.2", "t2", "10.0.0.6"] {
            assert_eq!(tasks(&backend(name)), ["web.2"], "{name}");
        }
        assert_eq!(
            tasks(&backend("web.10")),
            [""; 0],
            "it runs where this node sends nothing"
        );
        let error = list(&backend("web.11")).unwrap_err();
        assert!(error.contains("'web.11'"), "{error}");
        let service = |name: &str| FlowQuery {
            service: Some(name.to_owned()),
            ..FlowQuery::default()
        };
        assert_eq!(tasks(&service("web")), tasks(&service("web-id")));
        assert_eq!(tasks(&service("dns")), [""; 0]);
        let error = list(&service("nothing")).unwrap_err();
        assert!(error.contains("'nothing'"), "{error}");
    }

    #[test]
    fn what_is_past_the_limit_is_counted() {
        let all = list(&FlowQuery::default()).unwrap().flows.len();
        let query = FlowQuery {
            limit: Some(1),
            ..FlowQuery::default()
        };
        let answer = list(&query).unwrap();
        assert_eq!((answer.flows.len(), answer.more), (1, all as u64 - 1));
        let endless = FlowQuery {
            limit: Some(usize::MAX),
            ..FlowQuery::default()
        };
        assert_eq!(limit(&endless), MAX_FLOWS);
    }
}
