//! `meshctl monitor`: asks the agents again and again for what became of packets since the last question.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use futures_util::future::join_all;
use pcap_file::{
    DataLink, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    nodes::Nodes,
    print::{Format, harmless, write_line},
};
use crate::{
    admin::{
        Client, ClientError,
        api::{Events, MonitorQuery, PacketEvent},
    },
    datapath::monitor::EventKind,
    model::Prefix,
};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(200);
/// The longest head that an agent sends.
const SNAPSHOT_LENGTH: u32 = 144;

#[derive(Debug, Args)]
pub(super) struct MonitorArguments {
    /// Only packets of this service, by name or id
    #[arg(long)]
    service: Option<String>,
    /// Only packets from or to this address or prefix
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    client: Option<Prefix>,
    /// Only these events
    #[arg(long, value_enum)]
    event: Option<EventKind>,
    /// Write the packets' first 128 bytes to a file for Wireshark or tcpdump; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// End after so many events
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    nodes: Nodes,
    /// How to print: lines of text, or of JSON
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// An agent that is asked.
struct Watched {
    hostname: String,
    client: Client,
    query: MonitorQuery,
    /// Why its last answer did not come.
    trouble: Option<String>,
}

/// An event with the node that reports it, as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    #[serde(flatten)]
    event: &'a PacketEvent,
}

pub(super) async fn run(client: &Client, arguments: &MonitorArguments) -> anyhow::Result<ExitCode> {
    let query = MonitorQuery {
        since: None,
        service: arguments.service.clone(),
        client: arguments.client,
        event: arguments.event,
        heads: arguments.pcap.is_some(),
    };
    let mut watched: Vec<_> = arguments
        .nodes
        .each(client)
        .await?
        .into_iter()
        .map(|(hostname, client)| Watched {
            hostname,
            client,
            query: query.clone(),
            trouble: None,
        })
        .collect();
    // An argument that the agents refuse ends it at once.
    if let ([only], false) = (watched.as_mut_slice(), arguments.nodes.are_all()) {
        let answer = only.client.monitor(&only.query).await?;
        only.query.since = Some(answer.next);
    }
    let mut capture = arguments.pcap.as_deref().map(open_capture).transpose()?;
    let prints = arguments.pcap.as_deref() != Some(Path::new("-"));
    let mut left = arguments.count;
    loop {
        let answers = join_all(
            watched
                .iter()
                .map(|watched| watched.client.monitor(&watched.query)),
        )
        .await;
        let mut events: Vec<(String, PacketEvent)> = Vec::new();
        for (watched, answer) in watched.iter_mut().zip(answers) {
            let found = watched.take(answer).into_iter();
            events.extend(found.map(|event| (watched.hostname.clone(), event)));
        }
        events.sort_by(|(_, left), (_, right)| left.time.cmp(&right.time));
        if let Some(left) = &mut left {
            events.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= events.len() as u64;
        }
        for (node, event) in &events {
            if let Some(capture) = &mut capture {
                write_packet(capture, event)?;
            }
            if prints {
                write_line(&line(arguments, node, event)?)?;
            }
        }
        if left == Some(0) {
            let is_complete = watched.iter().all(|watched| watched.trouble.is_none());
            return Ok(if is_complete {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

impl Watched {
    /// The events of an answer. Reports what is missing; a failure is not the end, as the agent may be
    /// restarting.
    fn take(&mut self, answer: Result<Events, ClientError>) -> Vec<PacketEvent> {
        match answer {
            Ok(answer) => {
                self.query.since = Some(answer.next);
                self.trouble = None;
                if answer.lost > 0 {
                    let (node, lost) = (harmless(&answer.hostname), answer.lost);
                    eprintln!("meshctl: {node}: {lost} more events, too many to report; narrow them down");
                }
                answer.events
            }
            Err(error) => {
                let trouble = mesh_support::error_chain(&error);
                if self.trouble.as_ref() != Some(&trouble) {
                    eprintln!("meshctl: {}: {}", harmless(&self.hostname), harmless(&trouble));
                    self.trouble = Some(trouble);
                }
                Vec::new()
            }
        }
    }
}

fn line(arguments: &MonitorArguments, node: &str, event: &PacketEvent) -> anyhow::Result<String> {
    match arguments.format {
        Format::Json => {
            serde_json::to_string(&Line { node, event }).context("cannot write the event as JSON")
        }
        Format::Table => {
            let node = arguments.nodes.are_all().then_some(node);
            Ok(harmless(&text(node, event)))
        }
    }
}

/// An event as a line of text; times are UTC.
fn text(node: Option<&str>, event: &PacketEvent) -> String {
    let time = event.time.split_once('T').map_or("", |(_, time)| time);
    let time = time.trim_end_matches('Z');
    let socket = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "-".to_owned(),
    };
    let source = socket(event.source, event.source_port);
    let destination = socket(event.destination, event.destination_port);
    let task = event.backend.as_ref().map_or("-", |backend| &backend.task);
    let protocol = event.protocol.as_deref().unwrap_or("-");
    let service = event.service.as_deref().unwrap_or("-");
    let interface = match event.interface.as_str() {
        "" => "-",
        interface => interface,
    };
    let at = node.map_or_else(String::new, |node| format!("{node:<12} "));
    let line = format!(
        "{time:<15.15} {at}{:<8} {protocol:<4} {source:<21} > {destination:<21} {service} {task} {} {}",
        event.event.name(),
        interface,
        event.reason.as_deref().unwrap_or_default(),
    );
    line.trim_end().to_owned()
}

/// Not buffered: it is complete whenever it is interrupted.
type Capture = PcapWriter<File>;

fn open_capture(path: &Path) -> anyhow::Result<Capture> {
    let file = if path == Path::new("-") {
        io::stdout().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::create(path)
    };
    new_capture(file.with_context(|| format!("cannot write to {}", path.display()))?)
}

fn new_capture(file: File) -> anyhow::Result<Capture> {
    let header = PcapHeader {
        snaplen: SNAPSHOT_LENGTH,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        ..PcapHeader::default()
    };
    PcapWriter::with_header(file, header).context("cannot write the capture")
}

fn write_packet(capture: &mut Capture, event: &PacketEvent) -> anyhow::Result<()> {
    if event.length == 0 {
        // It has ended without a packet.
        return Ok(());
    }
    let head = event.head.as_deref().unwrap_or_default();
    let head = STANDARD
        .decode(head)
        .context("the agent's answer is not base64")?;
    let time = OffsetDateTime::parse(&event.time, &Rfc3339).context("the agent's answer has no time")?;
    let since = Duration::try_from(time - OffsetDateTime::UNIX_EPOCH).unwrap_or_default();
    // The agent puts an Ethernet header before packets that came without.
    let length = event.length.max(u32::try_from(head.len())?);
    capture
        .write_packet(&PcapPacket::new(since, length, &head))
        .context("cannot write the capture")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use pcap_file::pcap::PcapReader;

    use super::*;
    use crate::admin::api::FlowBackend;

    fn event() -> PacketEvent {
        PacketEvent {
            time: "2026-01-01T10:20:30.123456789Z".to_owned(),
            event: EventKind::Opened,
            reason: None,
            protocol: Some("tcp".to_owned()),
            source: Some("192.0.2.7".parse().unwrap()),
            source_port: Some(40_000),
            destination: Some("10.0.0.1".parse().unwrap()),
            destination_port: Some(9200),
            service: Some("web".to_owned()),
            backend: Some(FlowBackend {
                task: "web.1".to_owned(),
                task_id: "t1".to_owned(),
                node: "n1".to_owned(),
                address: "10.0.1.5:80".to_owned(),
            }),
            interface: "eth0".to_owned(),
            length: 74,
            head: Some(STANDARD.encode([7; 60])),
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let columns = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            columns(text(None, &event())),
            "10:20:30.123456 opened tcp 192.0.2.7:40000 > 10.0.0.1:9200 web web.1 eth0"
        );
        let refused = PacketEvent {
            event: EventKind::Refused,
            reason: Some("no_backend".to_owned()),
            protocol: Some("47".to_owned()),
            source_port: None,
            destination_port: None,
            service: None,
            backend: None,
            ..event()
        };
        assert_eq!(
            columns(text(Some("n2"), &refused)),
            "10:20:30.123456 n2 refused 47 192.0.2.7 > 10.0.0.1 - - eth0 no_backend"
        );
    }

    #[test]
    fn a_capture_is_read_back_with_times_and_lengths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("capture");
        let mut capture = open_capture(&path).unwrap();
        write_packet(&mut capture, &event()).unwrap();
        let mut reader = PcapReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.header().datalink, DataLink::ETHERNET);
        let packet = reader.next_packet().unwrap().unwrap();
        assert_eq!((packet.orig_len, packet.data.len()), (74, 60));
        assert_eq!(packet.timestamp, Duration::new(1_767_262_830, 123_456_789));
    }
}
