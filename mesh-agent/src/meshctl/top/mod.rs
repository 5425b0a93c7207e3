//! `meshctl top`: what passes each service and replica at the moment, from two readings of the counters.

mod rates;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde::Serialize;

use self::rates::{Rates, ServiceRates, rates, sum};
use super::{
    nodes::{Failed, Nodes, OfAll, of_all},
    print::{Format, clear, harmless, is_broken_pipe, write_line},
    table::{bytes, new_table, number, text},
};
use crate::admin::{Client, ClientError, api::Routes};

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// Only this service, by name or id
    #[arg(long)]
    service: Option<String>,
    /// What to sort by, the most first
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// At most so many services
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    nodes: Nodes,
    /// Seconds between two readings
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
    /// Print once, after one interval
    #[arg(long)]
    once: bool,
    /// How to print; JSON is one line for each interval
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Sort {
    /// New connections
    Connections,
    /// Open connections
    Active,
    /// Packets of both directions
    Packets,
    /// Bytes of both directions
    #[default]
    Bytes,
}

/// What one interval showed.
#[derive(Debug, Serialize)]
struct Screen {
    interval_seconds: f64,
    services: Vec<ServiceRates>,
    /// How many more services there are than the limit.
    more: usize,
    /// The nodes whose agents did not answer: their traffic is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<Failed>,
}

/// What the agents answered, and when.
struct Reading {
    at: Instant,
    routes: OfAll<Routes>,
}

pub(super) async fn run(client: &Client, arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    tokio::select! {
        ended = watch(client, arguments) => ended,
        // That is how it is ended.
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot wait for signals")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn watch(client: &Client, arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    let mut before = read(client, arguments).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(arguments.interval.into())).await;
        let after = match read(client, arguments).await {
            Ok(after) => after,
            Err(error) if arguments.once => return Err(error.into()),
            // Keep watching: the agent may be restarting.
            Err(error) => {
                eprintln!("meshctl: {}", harmless(&mesh_support::error_chain(&error)));
                continue;
            }
        };
        let code = after.routes.exit_code();
        let routes = after.routes;
        let screen = screen(arguments, &before, after.at, &routes.nodes, routes.failed);
        match show(arguments, &screen) {
            Err(error) if is_broken_pipe(&error) => return Err(error),
            shown => shown?,
        }
        if arguments.once {
            return Ok(code);
        }
        before = Reading {
            at: after.at,
            routes: OfAll {
                nodes: routes.nodes,
                failed: Vec::new(),
            },
        };
    }
}

async fn read(client: &Client, arguments: &TopArguments) -> Result<Reading, ClientError> {
    let routes = if arguments.nodes.are_all() {
        of_all(client, async |client: &Client| client.routes().await).await?
    } else {
        OfAll {
            nodes: vec![arguments.nodes.one(client).routes().await?],
            failed: Vec::new(),
        }
    };
    Ok(Reading {
        at: Instant::now(),
        routes,
    })
}

fn screen(
    arguments: &TopArguments,
    before: &Reading,
    at: Instant,
    after: &[Routes],
    failed: Vec<Failed>,
) -> Screen {
    let elapsed = at.duration_since(before.at).as_secs_f64();
    let of_nodes = after.iter().filter_map(|after| {
        let mut earlier = before.routes.nodes.iter();
        let before = earlier.find(|before| before.node == after.node)?;
        Some(rates(before, after, elapsed))
    });
    let mut services = sum(of_nodes.flatten());
    if let Some(wanted) = &arguments.service {
        services.retain(|service| service.service == *wanted || service.service_id == *wanted);
    }
    let most_first =
        |left: &Rates, right: &Rates| arguments.sort.of(right).total_cmp(&arguments.sort.of(left));
    for service in &mut services {
        // Stable: those without traffic stay in the order of their names.
        service
            .replicas
            .sort_by(|left, right| most_first(&left.rates, &right.rates));
    }
    services.sort_by(|left, right| most_first(&left.rates, &right.rates));
    let more = services.len().saturating_sub(arguments.limit);
    services.truncate(arguments.limit);
    Screen {
        interval_seconds: elapsed,
        services,
        more,
        failed,
    }
}

impl Sort {
    fn of(self, rates: &Rates) -> f64 {
        match self {
            Self::Connections => rates.connections_per_second,
            Self::Active => rates.connections_active as f64,
            Self::Packets => rates.packets_in_per_second + rates.packets_out_per_second,
            Self::Bytes => rates.bytes_in_per_second + rates.bytes_out_per_second,
        }
    }
}

fn show(arguments: &TopArguments, screen: &Screen) -> anyhow::Result<()> {
    match arguments.format {
        Format::Json => write_line(&serde_json::to_string(screen).context("cannot write the rates as JSON")?),
        Format::Table => {
            if !arguments.once {
                clear()?;
            }
            write_line(&harmless(&table(screen)))?;
            // Between two screens that follow each other in a file.
            if !arguments.once && !io::stdout().is_terminal() {
                write_line("")?;
            }
            Ok(())
        }
    }
}

fn table(screen: &Screen) -> String {
    let mut table = new_table(&[
        "SERVICE",
        "PORT",
        "TASK",
        "NODE",
        "NEW/S",
        "FAILED/S",
        "ACTIVE",
        "PKTS/S IN",
        "PKTS/S OUT",
        "IN/S",
        "OUT/S",
    ]);
    for service in &screen.services {
        let port = format!("{}/{}", service.port, service.protocol);
        table.add_row(cells(&service.service, &port, None, &service.rates));
        for replica in &service.replicas {
            let backend = Some((replica.task.as_str(), replica.node.as_str()));
            table.add_row(cells(&service.service, &port, backend, &replica.rates));
        }
    }
    let mut output = if screen.services.is_empty() {
        "no services".to_owned()
    } else {
        text(&table)
    };
    if screen.more > 0 {
        output += &format!("\n\n{} more services; see --limit", screen.more);
    }
    for failed in &screen.failed {
        output += &format!("\n\nwithout {}: {}", failed.node, failed.error);
    }
    output
}

/// A row of a replica, or of a service as a whole.
fn cells(service: &str, port: &str, backend: Option<(&str, &str)>, rates: &Rates) -> Vec<Cell> {
    let (task, node) = backend.unwrap_or(("*", "*"));
    vec![
        Cell::new(service),
        Cell::new(port),
        Cell::new(task),
        Cell::new(node),
        number(rate(rates.connections_per_second)),
        number(
            rates
                .connections_failed_per_second
                .map_or_else(|| "-".to_owned(), rate),
        ),
        number(rates.connections_active),
        number(rate(rates.packets_in_per_second)),
        number(rate(rates.packets_out_per_second)),
        number(bytes(rates.bytes_in_per_second as u64)),
        number(bytes(rates.bytes_out_per_second as u64)),
    ]
}

/// A rate with a decimal where that matters.
fn rate(per_second: f64) -> String {
    if per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{admin::api::RouteState, datapath::Traffic, model::Protocol};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        top: TopArguments,
    }

    fn arguments(line: &str) -> TopArguments {
        let parts = ["top"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(parts).unwrap().top
    }

    fn routes(services: &[(&str, u64, u64)]) -> Routes {
        let route = |(name, connections, bytes): &(&str, u64, u64)| {
            let traffic = Traffic {
                connections_total: *connections,
                connections_active: 3,
                packets_in: 10 * connections,
                packets_out: 0,
                bytes_in: *bytes,
                bytes_out: 0,
            };
            rates::tests::route(name, &format!("{name}.1"), traffic)
        };
        Routes {
            version: 1,
            node: "n1".to_owned(),
            routes: services.iter().map(route).collect(),
            notices: Vec::new(),
            clock_seconds: 0.0,
        }
    }

    fn screen_of(line: &str) -> Screen {
        let at = Instant::now();
        let before = Reading {
            at,
            routes: OfAll {
                nodes: vec![routes(&[("db", 10, 0), ("idle", 5, 5), ("web", 0, 1000)])],
                failed: Vec::new(),
            },
        };
        let after = [routes(&[("db", 30, 4096), ("idle", 5, 5), ("web", 6, 1002)])];
        screen(
            &arguments(line),
            &before,
            at + Duration::from_secs(2),
            &after,
            Vec::new(),
        )
    }

    fn names(screen: &Screen) -> Vec<&str> {
        let services = screen.services.iter();
        services.map(|service| service.service.as_str()).collect()
    }

    #[test]
    fn the_busiest_service_comes_first() {
        assert_eq!(names(&screen_of("")), ["db", "web", "idle"]);
        assert_eq!(names(&screen_of("--service web")), ["web"]);
        let limited = screen_of("--sort connections --limit 1");
        assert_eq!((names(&limited), limited.more), (vec!["db"], 2));
    }

    #[test]
    fn a_service_and_each_of_its_replicas_is_a_row() {
        let text = table(&screen_of("--service db"));
        let rows: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let row = |task, node| {
            vec![
                "db", "9200/tcp", task, node, "10", "1.0", "3", "100", "0.0", "2.0KiB", "0B",
            ]
        };
        assert_eq!(rows[1..], [row("*", "*"), row("db.1", "n1")]);
        assert_eq!(RouteState::Active.name(), "active");
        assert_eq!(Protocol::Tcp.to_string(), "tcp");
    }

    #[test]
    fn nodes_whose_traffic_is_missing_are_named() {
        let mut screen = screen_of("");
        screen.failed.push(Failed {
            node: "n3".to_owned(),
            error: "its agent did not answer".to_owned(),
        });
        let text = table(&screen);
        assert!(
            text.ends_with("\n\nwithout n3: its agent did not answer"),
            "{text}"
        );
    }
}
