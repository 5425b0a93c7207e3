//! `meshctl node`.

use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use mesh_orchestrator::{
    api::types::{NodePatch, NodeView, OrchestratorView, TaskView, WorkerAdmission},
    objects::Availability,
};
use serde_json::{Value, json};

use super::{InspectFlags, ListFlags, each, say, service::TaskFlags};
use crate::meshctl::{
    client::{Api, ApiError},
    failure::Failure,
    flags::fields,
    views::{filter::Filter, inspect, nodes},
};

/// Docker's commands for nodes, and those for workers' admission and the key of the packets between nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// List tasks running on one or more nodes, defaults to current node
    Ps(Ps),
    /// Display detailed information on one or more nodes
    Inspect(Inspect),
    /// Update a node
    Update(Update),
    /// Admit a worker that has no access to the store, by the name in its certificate
    ///
    /// Its agent runs with --managers. It is refused before, and again after `node rm`.
    Admit(Admit),
    /// Remove one or more nodes that are down, or workers that have no access to the store
    #[command(visible_alias = "remove")]
    Rm(Remove),
    /// Make another key for the packets between nodes; the one before stays valid until the next time
    ///
    /// Nodes take it within 10 seconds, and no packet is lost. Wait a minute before the next rotation.
    RotateKey,
}

/// Tasks of nodes.
#[derive(Debug, Args)]
pub struct Ps {
    /// Nodes, by host name or id; `self` is this one
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    tasks: TaskFlags,
}

/// Nodes in detail.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Nodes, by host name or id; `self` is this one
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    inspect: InspectFlags,
}

/// What to change of a node.
#[derive(Debug, Args)]
pub struct Update {
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, value_name = "AVAILABILITY", value_parser = PossibleValuesParser::new(["active", "pause", "drain"]).try_map(|word| serde_json::from_value::<Availability>(word.into())))]
    availability: Option<Availability>,
    /// Add or update a node label
    #[arg(long, value_name = "NAME[=VALUE]")]
    label_add: Vec<String>,
    /// Remove a node label if exists
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// The node, by host name or id; `self` is this one
    node: String,
}

/// A worker to admit.
#[derive(Debug, Args)]
pub struct Admit {
    /// Labels of the node, which it cannot set itself
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// The common name in its certificate, which is the node's name
    name: String,
}

/// Nodes to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Remove a node whose status is unknown, too: it is switched off for good. Remove a worker that has no
    /// access to the store although it is ready: it is refused from then on, and its tasks run elsewhere
    #[arg(long, short = 'f')]
    force: bool,
    /// Nodes, by host name or id
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

pub(super) async fn run(api: &Api, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls(list) => {
            let filter = Filter::parse(&list.filter, &nodes::FILTERS)?;
            let own = own(api).await?;
            let views: Vec<NodeView> = api.get(&["nodes"], &[]).await?;
            list.print(&nodes::LAYOUT, &nodes::rows(views, &filter, &own))
        }
        NodeCommand::Ps(ps) => {
            ps.tasks.check()?;
            let asked = if ps.nodes.is_empty() {
                vec!["self".to_owned()]
            } else {
                ps.nodes
            };
            let mut views: Vec<TaskView> = Vec::new();
            for node in &asked {
                let id = view(api, node).await?.node.id;
                let tasks: Vec<TaskView> = api.get(&["tasks"], &[("node", id.as_str())]).await?;
                views.extend(tasks);
            }
            ps.tasks.print(views, false)
        }
        NodeCommand::Inspect(asked) => {
            let ask = |node: String| async move { view(api, &node).await };
            asked
                .inspect
                .each(&asked.nodes, ask, inspect::node, nodes::pretty)
                .await
        }
        NodeCommand::Update(update) => {
            let id = view(api, &update.node).await?.node.id;
            let patch = patch(&update)?;
            let _: Value = api.patch(&["nodes", id.as_str()], &patch).await?;
            say(&update.node)
        }
        NodeCommand::Admit(admit) => {
            let labels = fields::labels(&admit.labels).map_err(Failure::Usage)?;
            let worker = WorkerAdmission {
                name: admit.name.clone(),
                labels: labels.into_iter().collect(),
            };
            let _: Value = api.post(&["nodes"], &worker).await?;
            say(&admit.name)
        }
        NodeCommand::Rm(remove) => {
            let query: &[(&str, &str)] = if remove.force { &[("force", "true")] } else { &[] };
            each(&remove.nodes, |node| async move {
                let id = view(api, &node).await?.node.id;
                api.delete_with(&["nodes", id.as_str()], query).await?;
                Ok(node)
            })
            .await
        }
        NodeCommand::RotateKey => {
            let _: Value = api.post(&["tunnel-key", "rotate"], &json!({})).await?;
            Ok(())
        }
    }
}

async fn own(api: &Api) -> Result<String, ApiError> {
    let orchestrator: OrchestratorView = api.get(&["orchestrator"], &[]).await?;
    Ok(orchestrator.node)
}

async fn view(api: &Api, node: &str) -> Result<NodeView, ApiError> {
    if node == "self" {
        let own = own(api).await?;
        return api.get(&["nodes", &own], &[]).await;
    }
    api.get(&["nodes", node], &[]).await
}

fn patch(update: &Update) -> Result<NodePatch, Failure> {
    let added = fields::labels(&update.label_add).map_err(Failure::Usage)?;
    let removed = update.label_rm.iter().map(|name| (name.clone(), None));
    Ok(NodePatch {
        availability: update.availability,
        labels: removed
            .chain(added.into_iter().map(|(name, value)| (name, Some(value))))
            .collect(),
    })
}
