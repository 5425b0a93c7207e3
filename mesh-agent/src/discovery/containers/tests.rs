//! The watcher against a real kernel, in network namespaces of its own, and an engine that answers as a test
//! wants. Needs root.

use std::{convert::Infallible, net::Ipv4Addr, path::PathBuf};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Uri,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use mesh_support::namespace::Namespace;
use mesh_support::watched::Watched as _;
use serde_json::json;
use tokio::{net::UnixListener, sync::mpsc, time::timeout};
use tokio_util::sync::DropGuard;

use super::*;
use crate::discovery::{
    network::{Interest, NetworkOptions, watch_network},
    own_network::{in_namespace, ip},
};

const LIMIT: Duration = Duration::from_secs(5);
const TASK: &str = "task-1";

/// What the engine answers.
#[derive(Clone)]
struct Engine {
    started: &'static str,
    sandbox: String,
    /// A stream of events ends when this changes.
    stream: u32,
    /// A stream of events reports that the container was connected to a network when this changes.
    connections: u32,
}

fn answer(engine: &watch::Receiver<Engine>, uri: &Uri) -> Response {
    let Engine { started, sandbox, .. } = engine.current();
    let labels = json!({"mesh.task.id": TASK, "mesh.task.address": "240.0.0.9"});
    let path = uri.path();
    if path.ends_with("/version") {
        axum::Json(json!({"ApiVersion": "1.41"})).into_response()
    } else if path.ends_with("/events") {
        let mut engine = engine.clone();
        engine.mark_unchanged();
        let now = engine.current();
        let events = stream::unfold((engine, now), |(mut engine, now)| async move {
            let changed = |new: &Engine| (new.stream, new.connections) != (now.stream, now.connections);
            let new = engine.wait_for(changed).await.ok()?.clone();
            let connected = json!({"Type": "network", "Action": "connect",
                                   "Actor": {"ID": "n1", "Attributes": {"container": "c1"}}});
            let line = Bytes::from(format!("{connected}\n"));
            (new.stream == now.stream).then_some((Ok::<_, Infallible>(line), (engine, new)))
        });
        Body::from_stream(events).into_response()
    } else if path.ends_with("/containers/json") {
        axum::Json(json!([{"Id": "c1", "Labels": labels}])).into_response()
    } else {
        axum::Json(json!({
            "Id": "c1",
            "State": {"StartedAt": started},
            "Config": {"Labels": labels},
            "NetworkSettings": {"SandboxKey": sandbox},
        }))
        .into_response()
    }
}

/// A node with one container, in namespaces of their own.
struct Node {
    engine: watch::Sender<Engine>,
    state: watch::Receiver<ContainerState>,
    hints: mpsc::UnboundedReceiver<()>,
    _interest: watch::Sender<Interest>,
    _folder: tempfile::TempDir,
    _guard: DropGuard,
}

impl Node {
    /// With containers that are connected already, the first of which the engine lists.
    async fn start(containers: &[(&Namespace, &str)]) -> Self {
        ip("link add docker0 type bridge");
        ip("link set docker0 up");
        for (number, (container, address)) in containers.iter().enumerate() {
            connect(container, &format!("veth{number}"), address);
        }
        let folder = tempfile::tempdir().unwrap();
        let socket: PathBuf = folder.path().join("docker.sock");
        let (engine, receiver) = watch::channel(Engine {
            started: "2026-01-01T00:00:00Z",
            sandbox: containers[0].0.path(),
            stream: 0,
            connections: 0,
        });
        let serve = Router::new().fallback(move |uri: Uri| async move { answer(&receiver, &uri) });
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, serve).await });
        let (interest, interest_receiver) = watch::channel(Interest::default());
        let options = NetworkOptions {
            uplinks: Vec::new(),
            service_address: Ipv4Addr::new(169, 254, 96, 1),
        };
        let (watcher, mut network) = watch_network(options, interest_receiver).unwrap();
        tokio::spawn(watcher.run());
        let all = |state: &Option<NetworkState>| {
            let veths = state.as_ref().map(|state| state.container_interfaces.len());
            veths == Some(containers.len())
        };
        timeout(LIMIT, network.wait_for(all)).await.unwrap().unwrap();
        let (hint, hints) = mpsc::unbounded_channel();
        let (watcher, state) = ContainerWatcher::new(
            Docker::new(&socket),
            Scheduler::Orchestrator,
            network,
            move || {
                let _ = hint.send(());
            },
        );
        let shutdown = CancellationToken::new();
        tokio::spawn(watcher.run(shutdown.clone()));
        Self {
            engine,
            state,
            hints,
            _interest: interest,
            _folder: folder,
            _guard: shutdown.drop_guard(),
        }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&ContainerState) -> bool) {
        let result = timeout(LIMIT, self.state.wait_for(condition)).await.map(drop);
        assert!(
            result.is_ok(),
            "never happened: {what}: {:?}",
            self.state.current()
        );
    }
}

/// Connects a container to the bridge as the engine does.
fn connect(container: &Namespace, veth: &str, address: &str) {
    ip(&format!(
        "link add {veth} type veth peer name eth0 netns {}",
        container.path()
    ));
    ip(&format!("link set {veth} master docker0 up"));
    container.enter(|| {
        ip(&format!("address add {address}/24 dev eth0"));
        ip("link set eth0 up");
        ip("route add default dev eth0");
    });
}

fn address_of(state: &ContainerState) -> Option<Ipv4Addr> {
    state.containers.get(TASK).map(|container| container.address)
}

#[test]
fn a_container_whose_veth_is_gone_is_gone_before_the_engine_reports_it() {
    in_namespace(|| async {
        let container = Namespace::new().unwrap();
        let mut node = Node::start(&[(&container, "172.20.0.2")]).await;
        let found = |state: &ContainerState| address_of(state) == Some(Ipv4Addr::new(172, 20, 0, 2));
        node.until("the container", found).await;
        while node.hints.try_recv().is_ok() {}
        ip("link delete veth0");
        // The engine goes on listing it as running.
        node.until("its removal", |state| state.containers.is_empty())
            .await;
        assert!(node.state.current().listed);
        timeout(LIMIT, node.hints.recv()).await.expect("no hint came");
    });
}

#[test]
fn a_container_that_restarted_while_no_events_came_is_read_again() {
    in_namespace(|| async {
        let (before, after) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let mut node = Node::start(&[(&before, "172.20.0.2"), (&after, "172.20.0.3")]).await;
        let first = Ipv4Addr::new(172, 20, 0, 2);
        node.until("the container", |state| address_of(state) == Some(first))
            .await;
        node.engine.send_modify(|engine| {
            engine.started = "2026-01-01T00:00:09Z";
            engine.sandbox = after.path();
            engine.stream += 1;
        });
        node.until("its new address", |state| {
            let address = address_of(state).expect("it is used until it has been read again");
            address != first
        })
        .await;
    });
}

#[test]
fn the_networks_that_a_container_answers_by_itself_are_found() {
    in_namespace(|| async {
        let container = Namespace::new().unwrap();
        let mut node = Node::start(&[(&container, "172.20.0.2")]).await;
        let index = |state: &ContainerState| state.containers.get(TASK).map(|found| found.host_interface);
        node.until("the container", |state| index(state).is_some()).await;
        assert!(
            node.state.current().attached.is_empty(),
            "its route names no router"
        );
        container.enter(|| {
            ip("link add lan0 type veth peer name lan1");
            ip("address add 10.0.1.7/24 dev lan0");
            ip("link set lan0 up");
            ip("route add 192.0.2.0/24 via 172.20.0.1");
            ip("route add 198.51.100.0/25 via 10.0.1.1");
            ip("route replace default via 172.20.0.1");
        });
        node.engine.send_modify(|engine| engine.connections += 1);
        node.until("its networks", |state| !state.attached.is_empty())
            .await;
        let state = node.state.current();
        let attached = &state.attached[&index(&state).unwrap()];
        assert_eq!(attached.gateway, Ipv4Addr::new(172, 20, 0, 1));
        let subnets: Vec<_> = attached.subnets.iter().map(ToString::to_string).collect();
        assert_eq!(subnets, ["10.0.1.0/24", "172.20.0.0/24", "198.51.100.0/25"]);
    });
}

#[test]
fn a_replica_whose_default_route_passes_the_bridges_is_out_of_reach_until_it_no_longer_does() {
    in_namespace(|| async {
        let container = Namespace::new().unwrap();
        let mut node = Node::start(&[(&container, "172.20.0.2")]).await;
        node.until("the container", |state| address_of(state).is_some())
            .await;
        assert!(node.state.current().out_of_reach.is_empty());
        container.enter(|| {
            ip("link add lan0 type veth peer name lan1");
            ip("address add 10.0.1.7/24 dev lan0");
            ip("link set lan0 up");
            ip("route replace default via 10.0.1.1");
        });
        node.engine.send_modify(|engine| engine.connections += 1);
        node.until("it to be out of reach", |state| {
            state.containers.is_empty() && state.out_of_reach == [TASK.to_owned()].into()
        })
        .await;
        container.enter(|| ip("route replace default dev eth0"));
        node.engine.send_modify(|engine| engine.connections += 1);
        node.until("it to be in reach again", |state| {
            address_of(state).is_some() && state.out_of_reach.is_empty()
        })
        .await;
    });
}

#[tokio::test]
async fn an_absent_engine_is_reported_as_trouble() {
    let (_network, receiver) = watch::channel(None);
    let (watcher, mut state) = ContainerWatcher::new(
        Docker::new("/nonexistent/docker.sock"),
        Scheduler::Swarm,
        receiver,
        || {},
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(watcher.run(shutdown.clone()));
    let trouble = state
        .wait_for(|state| state.trouble.is_some())
        .await
        .unwrap()
        .clone();
    assert!(!trouble.listed && trouble.containers.is_empty());
    shutdown.cancel();
    running.await.unwrap();
}
