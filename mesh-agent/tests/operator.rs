//! `meshctl` as an operator uses it: exit codes and output, with and without an agent.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::SystemTime,
};

use mesh_agent::{
    admin::{
        AdminServer, Introspect, View,
        api::{DatapathAnswer, DumpAnswer, Flows, Routes},
        control::{self, DatapathRequest},
    },
    datapath::{
        Counters, Datapath as _, DatapathChoice, DatapathError, DatapathKind, DatapathStatus, Rung,
        RungState, RungStatus,
        dump::Dump,
        explain::{Explanation, Question},
        flow_list::{FirstFlows, FlowFilter, FlowState, Ingress, ListedFlow},
        mapped::MappedClient,
        memory::MemoryDatapath,
        monitor::Observations,
    },
    doctor,
    model::{Balance, Desired, NodeDatapath, Protocol, ReturnMode, ServiceEntry, ServiceKey},
    source::{Relay, SourceState},
};
use tokio_util::sync::CancellationToken;

/// An agent of a node whose only service has no replica, and whose counters fail on demand.
struct Idle {
    broken: bool,
}

impl Introspect for Idle {
    fn view(&self) -> Arc<View> {
        let key = ServiceKey {
            protocol: Protocol::Tcp,
            port: 9200,
        };
        let mut desired = Desired::default();
        desired.services.insert(
            key,
            ServiceEntry {
                id: "web-id".to_owned(),
                name: "web".to_owned(),
                balance: Balance::default(),
                active: Vec::new(),
                limits: Default::default(),
                policy: None,
                closed: Default::default(),
                idle: Default::default(),
            },
        );
        Arc::new(View {
            node: "id1".to_owned(),
            role: None,
            source: SourceState::default(),
            desired: Arc::new(desired),
            applied_revision: 0,
            datapath: NodeDatapath::Ebpf,
            datapath_status: on_tc(),
            modes: Vec::new(),
            without_hook: Default::default(),
            not_forwarding: Default::default(),
            datapath_errors: vec!["attach to eth0 failed".to_owned()],
            refused_services: Default::default(),
            limited: Default::default(),
            occupied_ports: Vec::new(),
            probes: Default::default(),
            drained: Default::default(),
            failed: Default::default(),
            lost_agents: Default::default(),
            policy: Arc::default(),
            ipv6_left: None,
            return_mode: ReturnMode::Tunnel,
            docker_trouble: None,
            metrics_trouble: None,
            not_ready: None,
            ready_without_snapshot: None,
            started: SystemTime::now(),
        })
    }

    fn dump(&self, flows: usize) -> Result<Dump, DatapathError> {
        let state = Desired::clone(&self.view().desired);
        MemoryDatapath { state }.dump(flows)
    }

    fn observe(&self, _: Option<u64>) -> Result<Observations, DatapathError> {
        Ok(Observations::default())
    }

    fn explain(&self, question: &Question) -> Result<Explanation, DatapathError> {
        MemoryDatapath::default().explain(question)
    }

    fn mapped_clients(&self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
        let client = MappedClient {
            address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into(),
            mapped: [248, 1, 2, 3].into(),
            interface: "eth0".to_owned(),
        };
        Ok(Some(client)
            .into_iter()
            .filter(|client| of.is_none_or(|address| client.is(address)))
            .collect())
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> Result<FirstFlows, DatapathError> {
        let mut flows = FirstFlows::new(limit);
        let flow = |number: u8| ListedFlow {
            protocol: Protocol::Tcp,
            client: SocketAddr::from(([192, 0, 2, number], 40_000)),
            frontend: SocketAddr::from(([10, 0, 0, 1], 9200)),
            presented: None,
            backend: None,
            state: FlowState::Open,
            idle_seconds: Some(3),
            ingress: Ingress::Network,
        };
        (1..=3)
            .map(flow)
            .filter(|flow| filter.admits(flow))
            .for_each(|flow| flows.add(flow));
        Ok(flows)
    }

    fn counters(&self) -> Result<Counters, DatapathError> {
        if self.broken {
            return Err(DatapathError {
                operation: "read map flows".to_owned(),
                source: "no such map".into(),
            });
        }
        Ok(Counters::default())
    }
}

/// A node whose uplink refuses XDP.
fn on_tc() -> DatapathStatus {
    let refused = "eth0: native XDP refused: no such hook";
    let status = |rung, state, reason: &str| RungStatus {
        rung,
        state,
        reason: reason.to_owned(),
    };
    DatapathStatus {
        choice: DatapathChoice::Auto,
        kind: DatapathKind::Ebpf,
        rung: Some(Rung::Tc),
        reason: refused.to_owned(),
        rungs: vec![
            status(Rung::XdpNativeTcx, RungState::Refused, refused),
            status(Rung::Tc, RungState::InUse, ""),
            status(Rung::Ipvs, RungState::NotTried, ""),
        ],
        steps_down: 1,
    }
}

/// An agent that accepts any choice but IPVS.
async fn answer_commands(mut commands: tokio::sync::mpsc::Receiver<control::Command>) {
    while let Some(command) = commands.recv().await {
        let answer = match command.request {
            control::Request::Datapath(DatapathRequest::Retry) => Ok(on_tc()),
            control::Request::Datapath(DatapathRequest::Use(DatapathChoice::Ipvs)) => {
                Err("this kernel has no IPVS".to_owned())
            }
            control::Request::Datapath(DatapathRequest::Use(choice)) => {
                Ok(DatapathStatus { choice, ..on_tc() })
            }
            control::Request::Drain(_) => Err("web has no other replica".to_owned()),
        };
        let _ = command.answer.send(answer);
    }
}

fn meshctl(socket: &Path, arguments: &[&str]) -> Output {
    command(socket, arguments)
        .output()
        .expect("meshctl is built for this test")
}

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    command
        .arg0("meshctl")
        .arg("--socket")
        .arg(socket)
        .args(arguments);
    command
}

/// Runs `meshctl` with an agent; returns what it wrote to both outputs, and its exit code.
async fn with_agent(agent: Idle, arguments: &[&'static str]) -> (String, Option<i32>) {
    let arguments = arguments.to_vec();
    serving(agent, move |socket| meshctl(socket, &arguments)).await
}

/// The same, once it has printed something, while `then` is done to it.
async fn with_running(
    arguments: &[&'static str],
    then: impl FnOnce(&Path, &std::process::Child) + Send + 'static,
) -> (String, Option<i32>) {
    let arguments = arguments.to_vec();
    let run = move |socket: &Path| {
        let mut child = command(socket, &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("meshctl is built for this test");
        let mut first = vec![0; 1];
        let stdout = child.stdout.as_mut().expect("it is piped");
        stdout.read_exact(&mut first).expect("it prints something");
        then(socket, &child);
        let mut output = child.wait_with_output().expect("it ends");
        output.stdout.splice(0..0, first);
        output
    };
    serving(Idle { broken: false }, run).await
}

/// Runs a command while an agent serves.
async fn serving(agent: Idle, run: impl FnOnce(&Path) -> Output + Send + 'static) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let options = doctor::Options {
        docker_socket: folder.path().join("docker.sock"),
        ..doctor::Options::default()
    };
    let (control, commands) = control::channel();
    let server = AdminServer::bind(&socket, Arc::new(agent), control, Relay::default(), options)
        .await
        .unwrap();
    let answering = tokio::spawn(answer_commands(commands));
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let output = tokio::task::spawn_blocking(move || run(&socket));
    let output = output.await.unwrap();
    stop.cancel();
    running.await.unwrap();
    // The server has dropped its end of the channel.
    answering.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

#[test]
fn without_an_agent_it_says_how_to_start_one_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let output = meshctl(&folder.path().join("admin.sock"), &["routes"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("the mesh agent is not running"), "{text}");
    assert!(text.contains("systemctl start mesh-agent"), "{text}");
}

/// README's rule, which is docker's: 125 for a wrong flag, 1 for anything else that is wrong.
#[test]
fn command_lines_that_cannot_be_understood_have_one_rule_for_both_names() {
    for (line, code) in [
        ("meshctl", 0),
        ("meshctl --help", 0),
        ("meshctl routes --port 99999", 125),
        ("meshctl routes --nothing", 125),
        ("meshctl --nothing", 125),
        ("meshctl drain --force --nothing", 125),
        ("meshctl nothing", 1),
        ("meshctl routes nothing", 1),
        ("meshctl drain", 1),
        ("meshctl datapath use nothing", 1),
        ("mesh-agent", 0),
        ("mesh-agent --help", 0),
        ("mesh-agent run --geneve-port many", 125),
        ("mesh-agent run --nothing", 125),
        ("mesh-agent clean --nothing", 125),
        ("mesh-agent health --admin-socket", 125),
        ("mesh-agent nothing", 1),
        ("mesh-agent health nothing", 1),
        // The agent does not run there.
        ("mesh-agent health --admin-socket /nonexistent", 1),
    ] {
        let mut parts = line.split(' ');
        let output = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
            .arg0(parts.next().unwrap())
            .args(parts)
            .output()
            .expect("it is built for this test");
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
    }
}

#[test]
fn without_an_agent_the_doctor_checks_with_its_own_permissions() {
    let folder = tempfile::tempdir().unwrap();
    let docker = folder.path().join("docker.sock");
    let arguments = ["doctor", "--docker-socket", docker.to_str().unwrap()];
    let output = meshctl(&folder.path().join("admin.sock"), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "there is no Docker there");
    assert!(
        text.contains("The agent is not running: checked by meshctl itself"),
        "{text}"
    );
    assert!(text.contains("Docker socket: start Docker"), "{text}");
}

#[tokio::test]
async fn routes_are_a_table_or_json() {
    let (text, code) = with_agent(Idle { broken: false }, &["routes"]).await;
    assert_eq!(code, Some(0));
    let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().take(3).collect();
    assert_eq!(row, ["web", "*:9200", "tcp"]);

    let (text, _) = with_agent(Idle { broken: false }, &["routes", "--format", "json"]).await;
    let table: Routes = serde_json::from_str(&text).unwrap();
    assert_eq!(table.routes[0].service, "web");
}

#[tokio::test]
async fn routes_can_be_filtered() {
    let (text, code) = with_agent(Idle { broken: false }, &["routes", "--service", "other"]).await;
    assert_eq!((text.trim(), code), ("no routes", Some(0)));
    let (text, _) = with_agent(Idle { broken: false }, &["routes", "--port", "9200"]).await;
    assert!(text.contains("web"), "{text}");
}

#[tokio::test]
async fn flows_are_filtered_by_the_agent_and_limited() {
    let (text, code) = with_agent(Idle { broken: false }, &["flows", "--client", "192.0.2.2/31"]).await;
    assert_eq!(code, Some(0), "{text}");
    let rows: Vec<_> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert_eq!(
        rows[1],
        [
            "192.0.2.2:40000",
            "10.0.0.1:9200",
            "tcp",
            "web",
            "gone",
            "-",
            "open",
            "3s",
            "network"
        ]
    );
    let (text, code) = with_agent(
        Idle { broken: false },
        &["flows", "--limit", "1", "--format", "json"],
    )
    .await;
    assert_eq!(code, Some(0), "{text}");
    let answer: Flows = serde_json::from_str(&text).unwrap();
    assert_eq!((answer.flows.len(), answer.more), (1, 2));
    let (text, code) = with_agent(Idle { broken: false }, &["flows", "--service", "other"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has the name or id 'other'"), "{text}");
    let (text, code) = with_agent(Idle { broken: false }, &["flows", "--limit", "0"]).await;
    assert_eq!(code, Some(125), "{text}");
}

#[tokio::test]
async fn an_ipv6_client_is_named_by_the_address_that_replicas_see() {
    for address in ["248.1.2.3", "2001:db8::7"] {
        let (text, code) = with_agent(Idle { broken: false }, &["clients", address]).await;
        assert_eq!(code, Some(0), "{text}");
        let row: Vec<_> = text
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(row, ["2001:db8::7", "248.1.2.3", "eth0"]);
    }
    let (text, code) = with_agent(Idle { broken: false }, &["clients", "248.9.9.9"]).await;
    assert_eq!((code, text.trim()), (Some(0), "no such IPv6 clients"));
    let (text, code) = with_agent(Idle { broken: false }, &["clients", "someone"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("invalid IP address"), "{text}");
}

#[tokio::test]
async fn a_packet_is_explained_by_the_agent_or_it_says_why_not() {
    let explain = ["explain", "127.0.0.1", "10.0.0.1:9200"];
    let (text, code) = with_agent(Idle { broken: false }, &explain).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("this node's data path is not eBPF"), "{text}");
    let (text, code) = with_agent(Idle { broken: false }, &["explain", "192.0.2.7", "10.0.0.1"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("DST:PORT"), "{text}");
}

#[tokio::test]
async fn rates_are_printed_once_as_a_table_or_a_line_of_json() {
    let (text, code) = with_agent(Idle { broken: false }, &["top", "--once"]).await;
    assert_eq!(code, Some(0), "{text}");
    let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().take(4).collect();
    assert_eq!(row, ["web", "9200/tcp", "*", "*"]);
    let json = ["top", "--once", "--all-nodes", "--format", "json"];
    let (text, code) = with_agent(Idle { broken: false }, &json).await;
    assert_eq!((text.lines().count(), code), (1, Some(0)), "{text}");
    let screen: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(screen["services"][0]["connections_per_second"], 0.0);
    let (text, code) = with_agent(Idle { broken: true }, &["top", "--once"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("read map flows"), "{text}");
}

#[tokio::test]
async fn an_interrupt_ends_the_rates_well() {
    let interrupt = |_: &Path, child: &std::process::Child| {
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    };
    let (text, code) = with_running(&["top"], interrupt).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("SERVICE"), "{text}");
}

#[tokio::test]
async fn all_nodes_are_asked_by_a_node_that_has_no_others() {
    let all = ["flows", "--all-nodes", "--format", "json"];
    let (text, code) = with_agent(Idle { broken: false }, &all).await;
    assert_eq!(code, Some(0), "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["nodes"][0]["flows"].as_array().unwrap().len(), 3);
    assert_eq!(answer["failed"].as_array().unwrap().len(), 0);
    let (text, code) = with_agent(Idle { broken: false }, &["status", "--node", "elsewhere"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("no node has the host name or id 'elsewhere'"),
        "{text}"
    );
}

#[tokio::test]
async fn status_lists_errors() {
    let (text, code) = with_agent(Idle { broken: false }, &["status"]).await;
    assert_eq!(code, Some(0));
    assert!(
        text.contains("problem: data path: attach to eth0 failed"),
        "{text}"
    );
}

#[tokio::test]
async fn the_rungs_are_a_table_with_a_reason_for_each_that_is_refused() {
    let (text, code) = with_agent(Idle { broken: false }, &["datapath"]).await;
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "requested: auto");
    let header: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(header, ["RUNG", "STATE", "REASON"]);
    assert!(lines[3].starts_with("xdp-native-tcx  refused"), "{text}");
    assert!(
        lines[3].ends_with("eth0: native XDP refused: no such hook"),
        "{text}"
    );
    assert_eq!(lines[4], "tc              in use");
    assert!(text.contains("stepped down once"), "{text}");

    let (text, _) = with_agent(Idle { broken: false }, &["datapath", "--format", "json"]).await;
    let answer: DatapathAnswer = serde_json::from_str(&text).unwrap();
    assert_eq!(answer.datapath, on_tc());
}

#[tokio::test]
async fn the_tables_are_text_or_json() {
    let (text, code) = with_agent(Idle { broken: false }, &["datapath", "dump", "--flows", "8"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("datapath ebpf\n"), "{text}");
    assert!(
        text.contains("\nservices\n  tcp/9200 rotate: no backends\n"),
        "{text}"
    );
    let (text, code) = with_agent(Idle { broken: false }, &["datapath", "dump", "--format", "json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let answer: DumpAnswer = serde_json::from_str(&text).unwrap();
    assert_eq!(answer.dump.services.len(), 1);
}

#[tokio::test]
async fn the_data_path_changes_on_request_or_the_refusal_is_explained() {
    let (text, code) = with_agent(Idle { broken: false }, &["datapath", "use", "ebpf"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("requested: ebpf"), "{text}");
    let (text, code) = with_agent(Idle { broken: false }, &["datapath", "retry", "--format", "json"]).await;
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str::<DatapathAnswer>(&text).unwrap();
    let (text, code) = with_agent(Idle { broken: false }, &["datapath", "use", "ipvs"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("this kernel has no IPVS"), "{text}");
}

#[tokio::test]
async fn status_names_the_rung_and_why_it_is_not_a_better_one() {
    let (text, _) = with_agent(Idle { broken: false }, &["status"]).await;
    assert!(
        text.contains("data path:   ebpf, rung tc (requested: auto); eth0: native XDP refused: no such hook"),
        "{text}"
    );
}

#[tokio::test]
async fn the_doctor_asks_the_running_agent() {
    let (text, code) = with_agent(Idle { broken: false }, &["doctor"]).await;
    assert!(text.starts_with("Checked by the running agent"), "{text}");
    assert_eq!(code, Some(1), "there is no Docker behind the agent's socket");
}

#[tokio::test]
async fn counters_that_cannot_be_read_are_an_error_with_its_cause() {
    let (text, code) = with_agent(Idle { broken: true }, &["routes"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("read map flows: no such map"), "{text}");
}

#[tokio::test]
async fn a_refused_drain_says_why() {
    let (text, code) = with_agent(Idle { broken: false }, &["drain", "web.1"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("web has no other replica"), "{text}");
}
