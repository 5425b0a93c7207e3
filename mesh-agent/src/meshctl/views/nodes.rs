//! `node ls` and `node inspect --pretty`: docker's layouts. Pure.

use mesh_orchestrator::{
    api::types::NodeView,
    cluster::Registration,
    objects::{NodeRole, NodeStatus},
};
use serde_json::Value;

use super::{filter::Filter, pretty::Pretty};
use crate::meshctl::{
    flags::units::{show_bytes, show_cpus},
    output::{
        Layout,
        people::{capitalised, moment, natural},
    },
};

/// Docker's fields and columns, and for templates some more.
pub(crate) const LAYOUT: Layout = Layout {
    fields: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("AgentVersion", "AGENT VERSION"),
        ("DataPath", "DATA PATH"),
        ("Role", "ROLE"),
        ("Address", "ADDRESS"),
        ("Tasks", "TASKS"),
    ],
    table: r"{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    quiet: "{{.ID}}",
    raw: &[
        ("node_id", "ID"),
        ("hostname", "Hostname"),
        ("status", "Status"),
        ("availability", "Availability"),
        ("manager_status", "ManagerStatus"),
    ],
};

/// What nodes can be filtered by.
pub(crate) const FILTERS: [&str; 5] = ["id", "label", "name", "node.label", "role"];

/// One row for each node that passes, by host name; `own` is the id of the node that was asked.
pub(crate) fn rows(mut nodes: Vec<NodeView>, filter: &Filter, own: &str) -> Vec<Value> {
    nodes.retain(|view| {
        let node = &view.node;
        filter.begins("id", node.id.as_str())
            && filter.begins("name", &node.hostname)
            && filter.is("role", node.role.name())
            && filter.labels("label", &node.engine_labels)
            && filter.labels("node.label", &node.labels)
    });
    nodes.sort_by(|left, right| natural(&left.node.hostname, &right.node.hostname));
    nodes
        .iter()
        .map(|view| {
            let node = &view.node;
            LAYOUT.row([
                node.id.as_str().into(),
                (node.id.as_str() == own).into(),
                node.hostname.as_str().into(),
                capitalised(&node.status.to_string()).into(),
                capitalised(&node.availability.to_string()).into(),
                manager_status(view).into(),
                registration(view)
                    .map_or("", |registration| registration.engine_version.as_str())
                    .into(),
                registration(view)
                    .map_or("", |registration| registration.release.as_str())
                    .into(),
                registration(view)
                    .map_or("", |registration| registration.datapath.as_str())
                    .into(),
                node.role.name().into(),
                node.address.as_str().into(),
                view.running.into(),
            ])
        })
        .collect()
}

fn registration(view: &NodeView) -> Option<&Registration> {
    view.registration.as_ref()
}

fn manager_status(view: &NodeView) -> String {
    if view.leader {
        return "Leader".to_owned();
    }
    capitalised(reachability(view).unwrap_or_default())
}

/// Whether a manager is heard, in docker's words; nothing of a worker.
pub(super) fn reachability(view: &NodeView) -> Option<&'static str> {
    match (view.node.role, view.node.status) {
        (NodeRole::Worker, _) => None,
        (NodeRole::Manager, NodeStatus::Ready) => Some("reachable"),
        (NodeRole::Manager, NodeStatus::Down) => Some("unreachable"),
        (NodeRole::Manager, NodeStatus::Unknown) => Some("unknown"),
    }
}

/// `node inspect --pretty`.
pub(crate) fn pretty(view: &NodeView) -> String {
    let node = &view.node;
    let mut text = Pretty::new();
    text.line(format_args!("ID:\t\t\t{}", node.id));
    text.labels("Labels:", " - ", &node.labels);
    text.line(format_args!("Hostname:              \t{}", node.hostname));
    text.line("Status:");
    text.line(format_args!(
        " State:\t\t\t{}",
        capitalised(&node.status.to_string())
    ));
    text.line(format_args!(" Since:\t\t\t{}", moment(node.status_since)));
    text.line(format_args!(
        " Availability:         \t{}",
        capitalised(&node.availability.to_string())
    ));
    if !node.address.is_empty() {
        text.line(format_args!(" Address:\t\t{}", node.address));
    }
    if let Some(reachability) = reachability(view) {
        text.line("Manager Status:");
        text.line(format_args!(" Address:\t\t{}", node.address));
        text.line(format_args!(" Raft Status:\t\t{}", capitalised(reachability)));
        text.line(format_args!(
            " Leader:\t\t{}",
            if view.leader { "Yes" } else { "No" }
        ));
    }
    text.line("Platform:");
    text.line(format_args!(" Operating System:\t{}", node.platform.os));
    text.line(format_args!(" Architecture:\t\t{}", node.platform.architecture));
    text.line("Resources:");
    text.line(format_args!(
        " CPUs:\t\t\t{}",
        show_cpus(node.resources.nano_cpus)
    ));
    text.line(format_args!(
        " Memory:\t\t{}",
        show_bytes(node.resources.memory_bytes)
    ));
    if let Some(registration) = registration(view) {
        text.line(format_args!("Engine Version:\t\t{}", registration.engine_version));
    }
    text.labels("Engine Labels:", " - ", &node.engine_labels);
    if let Some(registration) = registration(view) {
        text.line("Agent:");
        text.field(" Version:\t\t", &registration.release);
        text.field(" Data Path:\t\t", &registration.datapath);
        let engine = if registration.engine {
            "answers"
        } else {
            "does not answer"
        };
        text.line(format_args!(" Engine:\t\t{engine}"));
    }
    text.line(format_args!(
        "Reserved CPUs:\t\t{}",
        show_cpus(view.reserved.nano_cpus)
    ));
    text.line(format_args!(
        "Reserved Memory:\t{}",
        show_bytes(view.reserved.memory_bytes)
    ));
    text.line(format_args!("Running Tasks:\t\t{}", view.running));
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::{output::Format, views::testing::node};

    #[test]
    fn the_table_is_dockers() {
        let mut nodes = vec![
            node("nodeID2", "node-10-foo"),
            node("nodeID1", "node-2-foo"),
            node("nodeID3", "node-1-foo"),
        ];
        nodes[1].leader = true;
        nodes[2].node.role = NodeRole::Worker;
        nodes[0].node.availability = mesh_orchestrator::objects::Availability::Drain;
        let rows = rows(nodes, &Filter::default(), "nodeID1");
        assert_eq!(
            LAYOUT.render(&rows, &Format::Table, false).unwrap(),
            "ID          HOSTNAME      STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION\n\
             nodeID3     node-1-foo    Ready     Active                          29.3.1\n\
             nodeID1 *   node-2-foo    Ready     Active         Leader           29.3.1\n\
             nodeID2     node-10-foo   Ready     Drain          Reachable        29.3.1\n"
        );
    }

    #[test]
    fn pretty_names_what_the_node_has() {
        let text = pretty(&node("n1", "alpha"));
        assert!(text.starts_with("ID:\t\t\tn1\nLabels:\n - zone=a\nHostname:              \talpha\nStatus:\n State:\t\t\tReady\n"), "{text}");
        assert!(text.contains(" CPUs:\t\t\t4\n Memory:\t\t8GiB\n"), "{text}");
    }

    #[test]
    fn filters_choose() {
        let count = |text: &str| {
            let filter = Filter::parse(&[text.to_owned()], &FILTERS).unwrap();
            rows(vec![node("n1", "alpha"), node("n2", "beta")], &filter, "").len()
        };
        assert_eq!(
            (
                count("name=al"),
                count("role=worker"),
                count("node.label=zone=a"),
                count("id=n")
            ),
            (1, 0, 2, 2)
        );
    }
}
