//! This node's membership in the cluster. The local engine is polled for it, as it has no events for a join,
//! a promotion or a demotion of its own node.

use std::{path::PathBuf, time::Duration};

use mesh_support::watched::Watched as _;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    docker::{Docker, DockerError, EngineInfo},
    model::NodeId,
    source::HintHandle,
};

/// A member's role rarely changes.
const SETTLED_INTERVAL: Duration = Duration::from_secs(5);
/// While the engine does not answer, or the node has not joined.
const WAITING_INTERVAL: Duration = Duration::from_secs(1);

/// What the engine last reported of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EngineReport {
    /// Its last answer; `None` before the first.
    pub(super) info: Option<EngineInfo>,
    /// Why the engine does not answer; `None` while it does.
    pub(super) trouble: Option<String>,
    /// The membership that the source determines, where Swarm does not.
    own: Option<Member>,
}

/// This node's membership in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// The engine has not answered, or does not know yet.
    Unknown,
    /// In no cluster.
    Outside,
    /// A member of the cluster.
    Member(Member),
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) node: NodeId,
    pub(super) manager: bool,
    pub(super) address: std::net::Ipv4Addr,
    /// Folder of the node's certificate.
    pub(super) certificates: PathBuf,
}

impl EngineReport {
    /// A report before the engine's first answer; `own` is the membership that the source determines.
    pub(super) fn new(own: Option<Member>) -> Self {
        Self {
            own,
            ..Self::default()
        }
    }

    /// What is wrong with the engine, for display.
    pub(super) fn trouble(&self) -> Option<String> {
        let is_locked = self.own.is_none() && self.info.as_ref().is_some_and(EngineInfo::is_locked);
        self.trouble
            .clone()
            .or_else(|| is_locked.then(|| LOCKED.to_owned()))
    }

    pub(super) fn membership(&self, docker_root: Option<&PathBuf>) -> Membership {
        if let Some(member) = &self.own {
            return Membership::Member(member.clone());
        }
        let Some(info) = &self.info else {
            return Membership::Unknown;
        };
        if info.is_outside() {
            return Membership::Outside;
        }
        let (true, Some(address)) = (info.active && !info.node.is_empty(), info.node_address) else {
            return Membership::Unknown;
        };
        let certificates = match docker_root {
            Some(root) => root.join("swarm/certificates"),
            None => info.certificates(),
        };
        Membership::Member(Member {
            node: info.node.clone(),
            manager: info.manager,
            address,
            certificates,
        })
    }
}

/// A locked manager is no member of its Swarm until it is unlocked.
const LOCKED: &str = "this manager is locked; waiting for 'docker swarm unlock'";

/// Polls the engine until cancelled, and at once when hinted. Logs when it stops answering, and when it
/// answers again.
pub(super) async fn follow(
    docker: Docker,
    engine: watch::Sender<EngineReport>,
    hint: HintHandle,
    shutdown: CancellationToken,
) {
    loop {
        let answer = ask(&docker, &engine.current()).await;
        match answer {
            Ok(info) => engine.send_if_modified(|known| answered(known, info)),
            Err(error) => {
                docker.reset();
                let trouble = mesh_support::error_chain(&error);
                engine.send_if_modified(|known| failed(known, trouble))
            }
        };
        let settled = {
            let known = engine.current();
            known.trouble.is_none() && known.info.as_ref().is_some_and(|info| info.active)
        };
        let interval = if settled {
            SETTLED_INTERVAL
        } else {
            WAITING_INTERVAL
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = hint.hinted() => {}
            () = sleep(interval) => {}
        }
    }
}

/// Asks the engine about itself.
///
/// An engine that stops closes its socket first, then stops its Swarm node, and still answers what it was
/// asked before: that it is `inactive`, although the node remains a member (moby, `start` in
/// `cmd/dockerd/daemon.go`). One that has left its Swarm answers the same on a new connection.
async fn ask(docker: &Docker, known: &EngineReport) -> Result<EngineInfo, DockerError> {
    let info = docker.info().await?;
    let was_member = known.info.as_ref().is_some_and(|info| !info.is_outside());
    if info.is_outside() && was_member {
        docker.reset();
        return docker.info().await;
    }
    Ok(info)
}

fn answered(known: &mut EngineReport, engine: EngineInfo) -> bool {
    let recovered = known.trouble.take().is_some();
    if recovered {
        info!("Docker answers again");
    }
    let before = known
        .info
        .as_ref()
        .map(|info| (info.state.as_str(), info.manager));
    if before != Some((engine.state.as_str(), engine.manager)) {
        match (engine.active, engine.manager) {
            (true, _) if known.own.is_some() => warn!(
                "this node has joined a Swarm: both the orchestrator and Swarm now schedule tasks here; run \
                 'docker swarm leave', or the agent without --orchestrator"
            ),
            (false, _) if known.own.is_some() => {}
            (true, manager) => info!(
                node = engine.node,
                role = if manager { "manager" } else { "worker" },
                docker = engine.version,
                "this node is a member of the Swarm"
            ),
            (false, _) if engine.is_locked() => warn!(docker = engine.version, "{LOCKED}"),
            (false, _) => warn!(
                state = engine.state,
                docker = engine.version,
                "this node is in no active Swarm; waiting for 'docker swarm init' or 'docker swarm join'"
            ),
        }
    }
    let changed = recovered || known.info.as_ref() != Some(&engine);
    known.info = Some(engine);
    changed
}

fn failed(known: &mut EngineReport, trouble: String) -> bool {
    if known.trouble.is_none() {
        warn!("{trouble}; retrying until it answers");
    }
    let changed = known.trouble.as_ref() != Some(&trouble);
    known.trouble = Some(trouble);
    changed
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::Uri};
    use mesh_support::watched::Watched as _;
    use serde_json::json;
    use tokio::{net::UnixListener, task::JoinHandle};

    use super::*;

    /// An engine at a socket, in the state of the moment. One that is `stopping` closes its socket while it
    /// makes its answer, which is the one of an engine outside any Swarm.
    fn run_engine(socket: PathBuf, state: watch::Receiver<&'static str>) -> JoinHandle<()> {
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = move |uri: Uri| {
            let (socket, mut state) = (socket.clone(), state.current());
            async move {
                if uri.path().ends_with("/version") {
                    return Json(json!({"ApiVersion": "1.41"}));
                }
                if state == "stopping" {
                    std::fs::remove_file(socket).unwrap();
                    state = "inactive";
                }
                Json(json!({"Swarm": {"NodeID": "node", "NodeAddr": "192.0.2.1", "LocalNodeState": state}}))
            }
        };
        tokio::spawn(async move {
            axum::serve(listener, Router::new().fallback(answer))
                .await
                .unwrap();
        })
    }

    #[tokio::test]
    async fn a_node_whose_engine_stops_has_not_left_its_swarm() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let (state, receiver) = watch::channel("active");
        let docker = Docker::new(&socket);
        let mut known = EngineReport::default();

        let running = run_engine(socket.clone(), receiver.clone());
        let member = ask(&docker, &known).await.unwrap();
        answered(&mut known, member);
        assert!(matches!(known.membership(None), Membership::Member(_)));
        state.send_replace("stopping");
        assert!(
            ask(&docker, &known).await.is_err(),
            "the answer of an engine that stops counts"
        );
        running.abort();

        state.send_replace("inactive");
        let restarted = run_engine(socket, receiver);
        let left = ask(&docker, &known).await.unwrap();
        answered(&mut known, left);
        assert_eq!(known.membership(None), Membership::Outside);
        restarted.abort();
    }

    fn engine(state: &str, manager: bool) -> EngineInfo {
        let active = state == "active";
        EngineInfo {
            node: if active { "node".into() } else { String::new() },
            active,
            state: state.into(),
            manager,
            node_address: active.then_some(std::net::Ipv4Addr::new(192, 0, 2, 1)),
            remote_managers: Vec::new(),
            manager_ports: [2377].into(),
            data_path_port: None,
            cluster_id: None,
            root: "/var/lib/docker".into(),
            version: "20.10.24".into(),
        }
    }

    fn membership(info: Option<EngineInfo>, root: Option<&PathBuf>) -> Membership {
        EngineReport {
            info,
            ..EngineReport::default()
        }
        .membership(root)
    }

    #[test]
    fn a_node_in_transition_is_not_taken_for_one_that_has_left() {
        assert_eq!(membership(None, None), Membership::Unknown);
        for state in ["pending", "error", "locked"] {
            assert_eq!(
                membership(Some(engine(state, false)), None),
                Membership::Unknown,
                "{state}"
            );
        }
        assert_eq!(
            membership(Some(engine("inactive", false)), None),
            Membership::Outside
        );
    }

    #[test]
    fn a_locked_manager_is_in_trouble_until_it_is_unlocked() {
        let mut known = EngineReport::default();
        for (state, is_locked) in [("locked", true), ("active", false)] {
            assert!(answered(&mut known, engine(state, false)));
            let trouble = known.trouble();
            assert_eq!(
                trouble.is_some_and(|trouble| trouble.contains("docker swarm unlock")),
                is_locked
            );
        }
    }

    #[test]
    fn certificates_are_below_the_configured_root_or_the_engines() {
        let root = PathBuf::from("/host/docker");
        for (root, expected) in [
            (None, "/var/lib/docker/swarm/certificates"),
            (Some(&root), "/host/docker/swarm/certificates"),
        ] {
            let Membership::Member(member) = membership(Some(engine("active", true)), root) else {
                panic!("an active node is a member");
            };
            assert_eq!(member.certificates, PathBuf::from(expected));
            assert!(member.manager);
        }
    }

    #[test]
    fn an_outage_of_the_engine_keeps_its_last_answer() {
        let mut known = EngineReport::default();
        assert!(answered(&mut known, engine("active", false)));
        assert!(failed(&mut known, "gone".into()));
        assert!(!failed(&mut known, "gone".into()), "logged once");
        assert!(matches!(known.membership(None), Membership::Member(_)));
        assert!(
            answered(&mut known, engine("active", false)),
            "the recovery is a change"
        );
        assert!(!answered(&mut known, engine("active", false)));
        assert_eq!(known.trouble, None);
    }
}
