//! `meshctl clients`.

use std::{net::IpAddr, process::ExitCode};

use clap::Args;
use comfy_table::Cell;

use super::{
    nodes::Nodes,
    print::Format,
    table::{new_table, text},
};
use crate::admin::{
    Client,
    clients::{Clients, ClientsQuery, DEFAULT_CLIENTS, MAX_CLIENTS},
};

#[derive(Debug, Args)]
pub(super) struct ClientsArguments {
    /// Only the client with this address: its own, or the one that replicas see
    address: Option<IpAddr>,
    /// At most so many; the last line counts the others
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_CLIENTS, value_parser = limit)]
    limit: usize,
    #[command(flatten)]
    nodes: Nodes,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text
        .parse()
        .ok()
        .filter(|limit| (1..=MAX_CLIENTS).contains(limit));
    limit.ok_or_else(|| format!("expected a number from 1 to {MAX_CLIENTS}"))
}

pub(super) async fn run(client: &Client, arguments: &ClientsArguments) -> anyhow::Result<ExitCode> {
    let query = ClientsQuery {
        address: arguments.address,
        limit: Some(arguments.limit),
    };
    let nodes = &arguments.nodes;
    let ask = async |client: &Client| client.clients(&query).await;
    let table = |answers: &[Clients]| table(answers, nodes.are_all());
    nodes.show(client, arguments.format, ask, table).await
}

fn table(answers: &[Clients], names_nodes: bool) -> String {
    if answers.iter().all(|answer| answer.clients.is_empty()) {
        return "no such IPv6 clients".to_owned();
    }
    let mut header = vec!["CLIENT", "SEEN AS", "INTERFACE"];
    if names_nodes {
        header.insert(0, "AT");
    }
    let mut table = new_table(&header);
    for answer in answers {
        for client in &answer.clients {
            let at = names_nodes.then(|| Cell::new(&answer.hostname));
            let cells = [
                Cell::new(client.address),
                Cell::new(client.mapped),
                Cell::new(&client.interface),
            ];
            table.add_row(at.into_iter().chain(cells));
        }
    }
    let rest = match answers.iter().map(|answer| answer.more).sum::<u64>() {
        0 => String::new(),
        more => format!("\n\n{more} more; see --limit"),
    };
    format!("{}{rest}", text(&table))
}
