//! `meshctl explain`.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;

use super::{
    nodes::Nodes,
    print::{Format, Transport},
    table::{new_table, text},
};
use crate::{
    admin::{
        Client,
        api::{ExplainQuery, Explained},
    },
    model::Protocol,
};

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// The client: an address, or address:port ([address]:port for IPv6)
    #[arg(value_name = "SRC[:PORT]", value_parser = source)]
    source: Source,
    /// What it dials: address:port
    #[arg(value_name = "DST:PORT")]
    destination: SocketAddr,
    /// The protocol
    #[arg(value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// The interface by which the packet arrives [default: where the client's address and the routes say]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    #[command(flatten)]
    nodes: Nodes,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    address: IpAddr,
    port: Option<u16>,
}

fn source(argument: &str) -> Result<Source, String> {
    let socket = argument.parse::<SocketAddr>().map(|socket| Source {
        address: socket.ip(),
        port: Some(socket.port()),
    });
    let source = socket.or_else(|_| argument.parse().map(|address| Source { address, port: None }));
    source.map_err(|_| "expected an address, address:port, or [IPv6 address]:port".to_owned())
}

pub(super) async fn run(client: &Client, arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let query = ExplainQuery {
        source: arguments.source.address,
        source_port: arguments.source.port,
        destination: arguments.destination,
        protocol: arguments.protocol.protocol(),
        interface: arguments.interface.clone(),
    };
    let ask = async |client: &Client| client.explain(&query).await;
    let table = |answers: &[Explained]| {
        let each: Vec<_> = answers.iter().map(table).collect();
        each.join("\n\n")
    };
    arguments.nodes.show(client, arguments.format, ask, table).await
}

fn table(answer: &Explained) -> String {
    let packet = match answer.protocol {
        Protocol::Tcp => "a TCP packet",
        Protocol::Udp => "a datagram",
    };
    let assumed = if answer.is_port_assumed {
        " (an assumed port)"
    } else {
        ""
    };
    let mut table = new_table(&["STEP", "DECISION"]);
    for step in &answer.steps {
        table.add_row([&step.step, &step.detail]);
    }
    format!(
        "{}: {packet} from {}{assumed} to {}\n\n{}",
        answer.hostname,
        answer.source,
        answer.destination,
        text(&table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{ExplainedOutcome, Step};

    #[test]
    fn a_client_is_an_address_with_or_without_a_port() {
        let address = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(source("192.0.2.7"), Ok(Source { address, port: None }));
        assert_eq!(
            source("192.0.2.7:40000"),
            Ok(Source {
                address,
                port: Some(40_000)
            })
        );
        let ipv6 = source("[2001:db8::1]:40000").unwrap();
        assert_eq!((ipv6.address.is_ipv6(), ipv6.port), (true, Some(40_000)));
        assert_eq!(source("2001:db8::1").unwrap().port, None);
        for wrong in ["", "192.0.2", "192.0.2.7:", "192.0.2.7:70000", "2001:db8::1::2"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_decision_is_a_line() {
        let answer = Explained {
            version: 1,
            node: "id1".to_owned(),
            hostname: "n1".to_owned(),
            protocol: Protocol::Tcp,
            source: "192.0.2.7:50000".parse().unwrap(),
            is_port_assumed: true,
            destination: "10.0.0.1:9200".parse().unwrap(),
            steps: vec![Step {
                step: "port".to_owned(),
                detail: "no service publishes tcp/9200".to_owned(),
            }],
            outcome: ExplainedOutcome::LeftToKernel,
            reason: None,
            backend: None,
            is_forecast: false,
        };
        assert_eq!(
            table(&answer),
            "n1: a TCP packet from 192.0.2.7:50000 (an assumed port) to 10.0.0.1:9200\n\n\
             STEP  DECISION\n\
             port  no service publishes tcp/9200"
        );
    }
}
