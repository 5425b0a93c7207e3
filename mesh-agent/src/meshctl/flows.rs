//! `meshctl flows`.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Cell;

use super::{
    nodes::Nodes,
    print::{Format, Transport, Watch, repeat},
    table::{new_table, number, text},
};
use crate::{
    admin::{
        Client,
        api::{DEFAULT_FLOWS, Flow, FlowQuery, Flows, MAX_FLOWS},
    },
    datapath::flow_list::FlowState,
    model::Prefix,
};

#[derive(Debug, Args)]
pub(super) struct FlowsArguments {
    /// Only this service's, by name or id
    #[arg(long)]
    service: Option<String>,
    /// Only of clients with this address or prefix
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    client: Option<Prefix>,
    /// Only this replica's, by task name, id or address on the ingress network
    #[arg(long, value_name = "TASK")]
    backend: Option<String>,
    /// Only in this state
    #[arg(long, value_enum)]
    state: Option<FlowState>,
    /// Only of this protocol
    #[arg(long, value_enum)]
    protocol: Option<Transport>,
    /// At most so many; the last line counts the others
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_FLOWS, value_parser = limit)]
    limit: usize,
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    watch: Watch,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_FLOWS).contains(limit));
    limit.ok_or_else(|| format!("expected a number from 1 to {MAX_FLOWS}"))
}

impl FlowsArguments {
    fn query(&self) -> FlowQuery {
        FlowQuery {
            service: self.service.clone(),
            client: self.client,
            backend: self.backend.clone(),
            state: self.state,
            protocol: self.protocol.map(Transport::protocol),
            limit: Some(self.limit),
        }
    }
}

pub(super) async fn run(client: &Client, arguments: &FlowsArguments) -> anyhow::Result<ExitCode> {
    let query = arguments.query();
    let nodes = &arguments.nodes;
    let show = async || {
        let ask = async |client: &Client| client.flows(&query).await;
        let table = |answers: &[Flows]| table(answers, nodes.are_all());
        nodes.show(client, arguments.format, ask, table).await
    };
    repeat(&arguments.watch, show).await
}

/// The flows of one node or, in one order, of all: the rows of a flow that passes two nodes are neighbours.
fn table(answers: &[Flows], names_nodes: bool) -> String {
    let mut flows: Vec<(&str, &Flow)> = Vec::new();
    for answer in answers {
        flows.extend(answer.flows.iter().map(|flow| (answer.hostname.as_str(), flow)));
    }
    if flows.is_empty() {
        return "no flows".to_owned();
    }
    flows.sort_by_key(|(_, flow)| {
        let frontend = flow.frontend;
        (flow.protocol, frontend.port(), flow.client, frontend.ip())
    });
    let mut header = vec![
        "CLIENT", "FRONTEND", "PROTO", "SERVICE", "TASK", "NODE", "STATE", "IDLE", "ENTERED",
    ];
    if names_nodes {
        header.insert(0, "AT");
    }
    let mut table = new_table(&header);
    for (node, flow) in flows {
        let at = names_nodes.then(|| Cell::new(node));
        table.add_row(at.into_iter().chain(cells(flow)));
    }
    let rest = match answers.iter().map(|answer| answer.more).sum::<u64>() {
        0 => String::new(),
        more => format!("\n\n{more} more; see --limit, or narrow it down by a filter"),
    };
    format!("{}{rest}", text(&table))
}

fn cells(flow: &Flow) -> Vec<Cell> {
    let backend = flow.backend.as_ref();
    let entered = match &flow.entry_node {
        Some(node) => format!("from {node}"),
        None => flow.ingress.name().to_owned(),
    };
    let client = match flow.presented {
        Some(presented) => format!("{}>{presented}", flow.client),
        None => flow.client.to_string(),
    };
    vec![
        Cell::new(client),
        Cell::new(flow.frontend),
        Cell::new(flow.protocol),
        Cell::new(flow.service.as_deref().unwrap_or("-")),
        Cell::new(backend.map_or("gone", |backend| &backend.task)),
        Cell::new(backend.map_or("-", |backend| &backend.node)),
        Cell::new(flow.state.name()),
        number(flow.idle_seconds.map_or_else(|| "-".to_owned(), idle)),
        Cell::new(entered),
    ]
}

/// A time in its largest unit.
fn idle(seconds: u32) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200.. => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::api::{FlowBackend, FlowIngress},
        model::Protocol,
    };

    fn flow() -> Flow {
        Flow {
            service: Some("web".to_owned()),
            protocol: Protocol::Tcp,
            client: "192.0.2.7:40000".parse().unwrap(),
            frontend: "10.0.0.1:9200".parse().unwrap(),
            presented: None,
            backend: Some(FlowBackend {
                task: "web.1".to_owned(),
                task_id: "t1".to_owned(),
                node: "n1".to_owned(),
                address: "10.0.1.5:80".to_owned(),
            }),
            state: FlowState::HalfOpen,
            idle_seconds: Some(3),
            ingress: FlowIngress::Network,
            entry_node: None,
        }
    }

    fn answer(flows: Vec<Flow>, more: u64) -> Flows {
        Flows {
            version: 1,
            node: "id1".to_owned(),
            hostname: "n1".to_owned(),
            flows,
            more,
        }
    }

    #[test]
    fn a_flow_is_one_line_and_says_where_it_entered() {
        let presented = Flow {
            presented: Some("10.0.0.1:40000".parse().unwrap()),
            backend: None,
            ingress: FlowIngress::Tunnel,
            entry_node: Some("n2".to_owned()),
            idle_seconds: None,
            ..flow()
        };
        let text = table(&[answer(vec![flow(), presented], 0)], false);
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[1..],
            [
                "192.0.2.7:40000 10.0.0.1:9200 tcp web web.1 n1 half-open 3s network",
                "192.0.2.7:40000>10.0.0.1:40000 10.0.0.1:9200 tcp web gone - half-open - from n2",
            ]
        );
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        assert_eq!(table(&[answer(Vec::new(), 0)], false), "no flows");
        let text = table(&[answer(vec![flow()], 12)], false);
        assert!(
            text.ends_with("\n\n12 more; see --limit, or narrow it down by a filter"),
            "{text}"
        );
    }

    #[test]
    fn the_rows_of_all_nodes_are_in_one_order_and_name_theirs() {
        let later = Flow {
            client: "192.0.2.8:40000".parse().unwrap(),
            ..flow()
        };
        let other = Flows {
            hostname: "n2".to_owned(),
            ..answer(vec![flow()], 3)
        };
        let text = table(&[answer(vec![flow(), later], 2), other], true);
        let rows: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().take(2).collect())
            .collect();
        assert_eq!(
            rows[..4],
            [
                ["AT", "CLIENT"],
                ["n1", "192.0.2.7:40000"],
                ["n2", "192.0.2.7:40000"],
                ["n1", "192.0.2.8:40000"]
            ]
        );
        assert!(text.contains("\n\n5 more"), "{text}");
    }

    #[test]
    fn idle_times_are_short() {
        assert_eq!(
            [0, 119, 120, 7199, 7200].map(idle),
            ["0s", "119s", "2m", "119m", "2h"]
        );
    }
}
