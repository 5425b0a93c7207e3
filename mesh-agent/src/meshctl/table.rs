//! Prints the agent's answers as tables. Unless the output is a terminal, each row is one line, for tools
//! like `awk`.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
};

use crate::{
    admin::api::{Ipv6Status, PeerProbes, ProbeState, Route, Routes, Status},
    datapath::{DatapathStatus, InterfaceMode, RungStatus},
    doctor::{Examiner, Outcome, Report},
    model::{NodeRole, ReturnMode},
};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use time::{Duration, OffsetDateTime, macros::format_description};

/// A snapshot that was confirmed longer ago is one that no manager has confirmed since.
const STALE_SECONDS: f64 = 10.0;

/// The table of routes; `*` stands for all addresses of the node unless `all_frontends`.
pub(super) fn routes(answer: &Routes, all_frontends: bool) -> String {
    let mut output = route_rows(answer, all_frontends);
    for notice in &answer.notices {
        let _ = write!(output, "\n\nproblem: {notice}");
    }
    output
}

fn route_rows(answer: &Routes, all_frontends: bool) -> String {
    if answer.routes.is_empty() {
        return "no routes".to_owned();
    }
    let reasons = answer.routes.iter().any(|route| !route.reason.is_empty());
    let mut header = vec![
        "SERVICE", "FRONTEND", "PROTO", "NODE", "TASK", "BACKEND", "STATE", "WEIGHT", "ACTIVE", "TOTAL",
        "PKTS IN", "PKTS OUT", "IN", "OUT",
    ];
    if reasons {
        header.push("REASON");
    }
    let mut table = new_table(&header);
    for route in &answer.routes {
        let mut row = route_cells(route, all_frontends);
        if reasons {
            row.push(Cell::new(&route.reason));
        }
        table.add_row(row);
    }
    text(&table)
}

/// Whether IPv6 is served; nothing of an agent that does not know.
fn ipv6_line(ipv6: &Ipv6Status) -> Option<String> {
    match (&ipv6.reason, ipv6.addresses.len()) {
        (Some(reason), _) => Some(format!("not served: {reason}")),
        (None, 0) => None,
        (None, 1) => Some("served at 1 address".to_owned()),
        (None, addresses) => Some(format!("served at {addresses} addresses")),
    }
}

fn route_cells(route: &Route, all_frontends: bool) -> Vec<Cell> {
    let frontend = if all_frontends {
        let ipv4 = route.frontends.iter();
        let ipv4 = ipv4.map(|address| format!("{address}:{}", route.port));
        let ipv6 = route.ipv6_frontends.iter();
        let ipv6 = ipv6.map(|address| format!("[{address}]:{}", route.port));
        let all: Vec<_> = ipv4.chain(ipv6).collect();
        all.join(",")
    } else {
        format!("*:{}", route.port)
    };
    let of_backend = |text: Option<&str>| Cell::new(text.unwrap_or("-"));
    let backend = route.backend.as_ref();
    let traffic = &route.traffic;
    vec![
        Cell::new(&route.service),
        Cell::new(frontend),
        Cell::new(route.protocol),
        of_backend(backend.map(|backend| backend.node.as_str())),
        of_backend(backend.map(|backend| backend.task.as_str())),
        of_backend(backend.map(|backend| backend.address.as_str())),
        Cell::new(route.state.name()),
        number(backend.map_or_else(|| "-".to_owned(), |backend| backend.weight.to_string())),
        number(traffic.connections_active),
        number(traffic.connections_total),
        number(traffic.packets_in),
        number(traffic.packets_out),
        number(bytes(traffic.bytes_in)),
        number(bytes(traffic.bytes_out)),
    ]
}

/// How long ago the snapshot was confirmed, and since when not, if that is long.
fn lag_line(lag: f64, now: OffsetDateTime) -> String {
    if lag < STALE_SECONDS {
        return format!("{lag:.1} s");
    }
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let since = now
        .checked_sub(Duration::seconds_f64(lag))
        .and_then(|since| since.format(&format).ok());
    match since {
        Some(since) => format!("{lag:.0} s: the snapshot in use was last confirmed at {since}"),
        None => format!("{lag:.0} s"),
    }
}

/// The agent's status: facts, interfaces, peers, problems.
pub(super) fn status(status: &Status) -> String {
    let role = match status.role {
        Some(NodeRole::Manager) => "manager",
        Some(NodeRole::Worker) => "worker",
        None => "unknown: Docker has not answered yet, or this node is not in a Swarm",
    };
    let address = status
        .node_address
        .map_or_else(|| "-".to_owned(), |address| address.to_string());
    let return_mode = match status.return_mode {
        ReturnMode::Tunnel => "tunnel (replies return through the entry node)",
        ReturnMode::Dsr => "dsr (replies go straight to the client)",
    };
    let lag = status.model.lag_seconds.map_or_else(
        || "never confirmed".to_owned(),
        |lag| lag_line(lag, OffsetDateTime::now_utc()),
    );
    let counts = &status.counts;
    let facts = [
        (
            "node",
            format!("{} ({})", or_dash(&status.hostname), or_dash(&status.node)),
        ),
        ("role", role.to_owned()),
        ("address", address),
        (
            "agent",
            format!("{}, up {:.0} s", status.agent_version, status.uptime_seconds),
        ),
        (
            "ready",
            match (&status.not_ready, &status.ready_without_snapshot) {
                (None, None) => "yes".to_owned(),
                (None, Some(reason)) => format!("yes: {reason}"),
                (Some(reason), _) => format!("no: {reason}"),
            },
        ),
        ("data path", datapath_line(&status.datapath_status)),
        ("return mode", return_mode.to_owned()),
        ("source", or_dash(&status.model.origin).to_owned()),
        (
            "revision",
            format!(
                "applied {}, seen {}",
                status.model.revision_applied, status.model.revision_seen
            ),
        ),
        ("lag", lag),
        (
            "programmed",
            format!(
                "{} ports, {} frontends, {} active and {} draining backends",
                counts.services, counts.frontends, counts.backends_active, counts.backends_draining
            ),
        ),
    ];
    let mut output = String::new();
    let drained = (!status.drained.is_empty()).then(|| ("drained", status.drained.join(", ")));
    let policy = (!status.policy.is_empty()).then(|| ("policy", status.policy.join("; ")));
    let ipv6 = ipv6_line(&status.ipv6).map(|line| ("ipv6", line));
    for (name, value) in facts.into_iter().chain(ipv6).chain(policy).chain(drained) {
        // Writing to a string does not fail.
        let _ = writeln!(output, "{:<12} {value}", format!("{name}:"));
    }
    let _ = write!(output, "\n{}\n", interfaces(&status.interfaces));
    let mut peers = new_table(&[
        "PEER",
        "ADDRESS",
        "ROLE",
        "READY",
        "DATA PATH",
        "NEXT HOP",
        "PROBES",
    ]);
    for peer in &status.peers {
        peers.add_row(vec![
            Cell::new(&peer.hostname),
            Cell::new(peer.address),
            Cell::new(match peer.role {
                NodeRole::Manager => "manager",
                NodeRole::Worker => "worker",
            }),
            Cell::new(if peer.ready { "yes" } else { "no" }),
            Cell::new(peer.datapath.name()),
            Cell::new(match (&peer.no_hook, peer.resolved) {
                (Some(no_hook), _) => format!("no hook on {}", no_hook.interface),
                (None, true) => match peer.path_mtu {
                    Some(mtu) => format!("resolved, path MTU {mtu}"),
                    None => "resolved".to_owned(),
                },
                (None, false) => "not resolved".to_owned(),
            }),
            Cell::new(peer.probes.as_ref().map_or_else(|| "-".to_owned(), probes)),
        ]);
    }
    let peers = if status.peers.is_empty() {
        "no peers".to_owned()
    } else {
        text(&peers)
    };
    let _ = write!(output, "\n{peers}\n");
    for error in &status.errors {
        let _ = write!(output, "\nproblem: {error}");
    }
    output
}

fn probes(probes: &PeerProbes) -> String {
    let round_trip = probes.round_trip_seconds.unwrap_or_default() * 1000.0;
    match probes.state {
        ProbeState::Answers => format!("answers in {round_trip:.1} ms"),
        ProbeState::Silent => {
            let seconds = probes.silent_seconds.unwrap_or_default();
            let state = if probes.answers_again {
                "unsteady"
            } else {
                "silent"
            };
            format!("{state} for {seconds:.0} s")
        }
        ProbeState::Unknown => "no answer yet".to_owned(),
    }
}

/// The ladder of data paths: the configured choice, then a row for each rung.
pub(super) fn datapath(status: &DatapathStatus) -> String {
    let steps = match status.steps_down {
        0 => String::new(),
        1 => "\nstepped down once since the agent started".to_owned(),
        steps => format!("\nstepped down {steps} times since the agent started"),
    };
    format!(
        "requested: {}\n\n{}\n{steps}",
        status.choice.name(),
        rungs(&status.rungs)
    )
}

fn rungs(rungs: &[RungStatus]) -> String {
    let mut table = new_table(&["RUNG", "STATE", "REASON"]);
    for status in rungs {
        table.add_row([status.rung.name(), status.state.name(), &status.reason]);
    }
    text(&table)
}

fn datapath_line(status: &DatapathStatus) -> String {
    let reason = if status.reason.is_empty() {
        String::new()
    } else {
        format!("; {}", status.reason)
    };
    format!(
        "{}, rung {} (requested: {}){reason}",
        status.kind.name(),
        status.rung_name(),
        status.choice.name()
    )
}

/// The doctor's report: checks, remedies, and the resulting data path.
#[must_use]
pub fn report(report: &Report) -> String {
    let mut table = new_table(&["CHECK", "RESULT", "FOUND"]);
    for check in &report.checks {
        table.add_row([check.name.as_str(), check.outcome.name(), check.detail.as_str()]);
    }
    let examiner = match report.examiner {
        Examiner::Agent => "Checked by the running agent, with its permissions.",
        Examiner::Meshctl => {
            "The agent is not running: checked by meshctl itself, with the permissions of this shell."
        }
    };
    let mut output = format!("{examiner}\n\n{}\n", text(&table));
    let problems = report.checks.iter().filter(|check| check.outcome != Outcome::Ok);
    for (index, check) in problems.enumerate() {
        let gap = if index == 0 { "\n" } else { "" };
        let _ = writeln!(output, "{gap}{}: {}", check.name, check.remedy);
    }
    if !report.interfaces.is_empty() {
        let _ = write!(output, "\n{}\n", interfaces(&report.interfaces));
    }
    if !report.rungs.is_empty() {
        let _ = write!(output, "\n{}\n", rungs(&report.rungs));
    }
    let _ = write!(output, "\n{}", report.conclusion.join("\n"));
    output
}

fn interfaces(modes: &[InterfaceMode]) -> String {
    if modes.is_empty() {
        return "no interface is attached".to_owned();
    }
    let mut table = new_table(&["INTERFACE", "DATA PATH", "REASON"]);
    for mode in modes {
        table.add_row([mode.interface.as_str(), mode.mode.name(), mode.reason.as_str()]);
    }
    text(&table)
}

pub(super) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.set_content_arrangement(if io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table without the trailing blanks that padding leaves.
pub(super) fn text(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

pub(super) fn number(value: impl ToString) -> Cell {
    Cell::new(value.to_string()).set_alignment(CellAlignment::Right)
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A size in binary units; without a blank before the unit, so that `awk` sees one column.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use crate::{
        admin::api::{RouteBackend, RouteState},
        datapath::Traffic,
        doctor::Check,
        model::Protocol,
    };

    use super::*;

    #[test]
    fn a_peers_answers_to_probes_are_one_short_text() {
        let text = |state, round_trip_seconds, silent_seconds| {
            probes(&PeerProbes {
                state,
                round_trip_seconds,
                silent_seconds,
                answers_again: false,
            })
        };
        assert_eq!(
            text(ProbeState::Answers, Some(0.000_21), None),
            "answers in 0.2 ms"
        );
        assert_eq!(
            text(ProbeState::Silent, Some(0.001), Some(11.6)),
            "silent for 12 s"
        );
        assert_eq!(text(ProbeState::Unknown, None, None), "no answer yet");
        let unsteady = PeerProbes {
            state: ProbeState::Silent,
            round_trip_seconds: Some(0.001),
            silent_seconds: Some(11.6),
            answers_again: true,
        };
        assert_eq!(probes(&unsteady), "unsteady for 12 s");
    }

    fn answer() -> Routes {
        let route = |service: &str, backend, state, reason: &str| Route {
            service: service.to_owned(),
            service_id: String::new(),
            protocol: Protocol::Tcp,
            port: 9200,
            frontends: vec![[192, 168, 0, 1].into(), [169, 254, 96, 1].into()],
            ipv6_frontends: vec!["2001:db8::1".parse().unwrap()],
            backend,
            state,
            reason: reason.to_owned(),
            traffic: Traffic {
                bytes_in: 5_000_000,
                ..Traffic::default()
            },
            connections_failed: None,
        };
        let backend = RouteBackend {
            task: "web.1".to_owned(),
            task_id: String::new(),
            slot: Some(1),
            node: "n1".to_owned(),
            node_id: String::new(),
            local: true,
            address: "10.0.0.5:80".to_owned(),
            weight: 1,
        };
        Routes {
            version: 1,
            node: "n1".to_owned(),
            clock_seconds: 0.0,
            notices: Vec::new(),
            routes: vec![
                route("web", Some(backend), RouteState::Active, ""),
                route("idle", None, RouteState::NoBackend, "no task runs"),
            ],
        }
    }

    #[test]
    fn a_route_is_one_line_and_its_frontends_one_asterisk() {
        let text = routes(&answer(), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let cells: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "web",
                "*:9200",
                "tcp",
                "n1",
                "web.1",
                "10.0.0.5:80",
                "active",
                "1",
                "0",
                "0",
                "0",
                "0",
                "4.8MiB",
                "0B"
            ]
        );
        assert!(lines[2].ends_with("no task runs"), "{text}");
    }

    #[test]
    fn a_snapshot_that_no_manager_confirms_has_the_time_of_its_confirmation() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(1);
        assert_eq!(lag_line(0.25, now), "0.2 s");
        let stale = lag_line(65.0, now);
        assert_eq!(
            stale,
            "65 s: the snapshot in use was last confirmed at 1970-01-01 00:58:55 UTC"
        );
    }

    #[test]
    fn whether_ipv6_is_served_is_one_line() {
        let line = |addresses: &[&str], reason: Option<&str>| {
            ipv6_line(&Ipv6Status {
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                reason: reason.map(str::to_owned),
            })
        };
        assert_eq!(line(&[], None), None, "an earlier release's agent");
        assert_eq!(line(&["fd00::1"], None).unwrap(), "served at 1 address");
        assert_eq!(
            line(&["fd00::1", "fd00::2"], None).unwrap(),
            "served at 2 addresses"
        );
        assert_eq!(line(&[], Some("it is off")).unwrap(), "not served: it is off");
    }

    #[test]
    fn all_frontends_are_listed_on_request() {
        assert!(routes(&answer(), true).contains("192.168.0.1:9200,169.254.96.1:9200,[2001:db8::1]:9200"));
    }

    #[test]
    fn bytes_have_binary_units() {
        assert_eq!(
            [0, 1023, 1024, 1_572_864, u64::MAX].map(bytes),
            ["0B", "1023B", "1.0KiB", "1.5MiB", "16.0EiB"]
        );
    }

    #[test]
    fn a_report_has_remedies_for_failed_checks_only() {
        let check = |name: &str, outcome, remedy: &str| Check {
            name: name.to_owned(),
            outcome,
            detail: "found".to_owned(),
            remedy: remedy.to_owned(),
        };
        let text = report(&Report {
            examiner: Examiner::Meshctl,
            checks: vec![
                check("BTF", Outcome::Ok, ""),
                check("BPF JIT", Outcome::Warn, "switch it on"),
            ],
            works: true,
            conclusion: vec!["It works.".to_owned()],
            interfaces: Vec::new(),
            rungs: Vec::new(),
        });
        assert!(text.starts_with("The agent is not running"), "{text}");
        assert!(text.contains("BPF JIT: switch it on"), "{text}");
        assert!(!text.contains("BTF: "), "{text}");
        assert!(text.ends_with("It works."), "{text}");
    }
}
