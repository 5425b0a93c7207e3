//! Runs the orchestrator's parts on this node side by side: the mirror of the objects, the campaign for
//! leadership, this node's registration, its tasks, and the mesh's snapshot of the cluster.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use mesh_orchestrator::{
    api::Access,
    backups::Keep,
    cluster::{BackupSchedule, Cluster, LeaderConfig, Member, Registration},
    objects::NodeId,
    store::{Heartbeat, InvalidKey},
};
use mesh_support::error_chain;
use mesh_support::watched::{Newest as _, Watched as _};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    listener,
    managers::Attempts,
    open::{Opened, Reach},
    options::MISSED_HEARTBEATS,
    program::Programs,
    relayed,
    source::{self, LabelErrors},
    tunnel_key,
    worker::{Worker, WorkerOptions},
    workers,
};

use crate::{
    discovery::ContainerState,
    model::{self, Drained, KeyId, NodeDatapath, announced::keep_known},
    process::Ended,
    source::{Acknowledged, Relay, RelayedRequest, SourceState},
};

/// How often the snapshot is confirmed while the store answers.
const CONFIRM: Duration = Duration::from_secs(1);
/// How often the node checks that its block of addresses is still its own.
const KEEP_BLOCK: Duration = Duration::from_secs(60);
/// How long everything may take to stop before the agent is replaced.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// How long the last reports may take when the agent stops.
const LAST_REPORTS: Duration = Duration::from_secs(1);

/// The trouble of a node whose store does not answer.
const NO_STORE: &str = "the store does not answer: changes are delayed";
/// The same for a node without access to it.
const NO_MANAGER: &str = "no manager serves this node: changes are delayed";

/// The orchestrator's ends of its channels to and from the mesh.
#[derive(Debug)]
pub struct Mesh {
    /// The snapshot of the cluster.
    pub state: watch::Sender<SourceState>,
    /// This node's data-path state, to announce.
    pub announcement: watch::Receiver<NodeDatapath>,
    /// The ids of the keys that it takes in the tunnel.
    pub keys: watch::Receiver<Vec<KeyId>>,
    /// The replicas that are drained on this node.
    pub drained: watch::Receiver<Drained>,
    /// Where requests of this node's operator to other nodes' agents come from.
    pub relay: Relay,
    /// Carries out what other nodes' agents ask of this node.
    pub relayed: mpsc::Sender<RelayedRequest>,
    /// Which announcement the store has acknowledged.
    pub acknowledged: watch::Sender<Acknowledged>,
    /// The containers that the mesh found on this node.
    pub found: watch::Receiver<ContainerState>,
    /// Whether the data path is up.
    pub is_up: watch::Receiver<bool>,
}

/// Runs everything until `shutdown` is cancelled, or until another program is to replace the agent.
/// Containers and the mesh keep running afterwards.
///
/// # Errors
/// When the node's id cannot be part of a key.
pub async fn run(opened: Opened, mesh: Mesh, shutdown: CancellationToken) -> Result<Ended, InvalidKey> {
    let Opened {
        options,
        runtime,
        cluster,
        upkeep,
        reach,
        node,
        engine_version,
        address,
        block,
        api,
        workers,
        listeners,
        logs,
        peers,
        programs,
    } = opened;
    let replace = CancellationToken::new();
    let stop = shutdown.child_token();
    let (proven, is_proven) = watch::channel(false);
    let heartbeat = Heartbeat {
        interval: options.heartbeat,
        missed: MISSED_HEARTBEATS,
    };
    let (engine, engine_answers) = watch::channel(true);
    let registration = Registration {
        address: address.to_string(),
        datapath: source::datapath_name(mesh.announcement.current()),
        logs: logs.map(|address| address.to_string()),
        engine: true,
        leaving: false,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        engine_version,
        // Without the field it would be the registration of a release that knows no keys.
        keys: Some(mesh.keys.current()),
        ..Registration::default()
    };
    let id = node.id.clone();
    let is_manager = node.role == mesh_orchestrator::objects::NodeRole::Manager;
    let member = Member::start(&cluster, node, registration, heartbeat)?;
    let worker = Worker::new(WorkerOptions {
        runtime,
        cluster: cluster.clone(),
        secrets: reach.secrets(),
        node: id.clone(),
        block,
        found: mesh.found,
        files: options.task_files.clone(),
        drain_time: options.drain_time,
        engine,
        programs: Arc::clone(&programs),
        proven: is_proven,
        replace: replace.clone(),
    });
    let leader = LeaderConfig {
        heartbeat,
        ..LeaderConfig::new(id.clone())
    };
    let schedule = BackupSchedule {
        folder: options.backups_path(),
        keep: Keep::default(),
    };
    // The mirror stops last.
    let end = CancellationToken::new();
    let leadership = async {
        if is_manager {
            let keep_backups = cluster.keep_backups(&schedule);
            tokio::join!(
                cluster.run_candidate(leader, stop.clone()),
                stop.run_until_cancelled(keep_backups),
            );
        }
    };
    let work = async {
        let attempts = match &reach {
            Reach::Store(_) => None,
            Reach::Managers(_, attempts) => Some(attempts),
        };
        let publish = publish(&cluster, &id, attempts, &mesh.state);
        let announced = Announced {
            datapath: mesh.announcement,
            keys: mesh.keys,
            drained: mesh.drained,
            engine: engine_answers,
        };
        let announce = announce(&cluster, &member, &id, announced, &mesh.acknowledged);
        let key = tunnel_key::follow(&reach, cluster.clock(), is_manager, &mesh.state);
        let carry = relayed::carry(&mesh.relay, peers);
        let keep = keep_block(&cluster, &reach, &id, block);
        let prove = prove(&programs, mesh.is_up, member.present(), proven);
        let serve = join_all(listeners.into_iter().map(|(listener, access)| {
            let router = match (access, &reach) {
                (Access::Tokens, _) => api.router(access),
                (Access::Trusted, Reach::Store(_)) => {
                    let agents = api.router(access).merge(relayed::routes(mesh.relayed.clone()));
                    workers::by_peer(agents, workers.as_ref().map(workers::routes))
                }
                // A manager asks for the logs of tasks, and what operators ask of this node.
                (Access::Trusted, Reach::Managers(..)) => {
                    let managers = api.log_routes().merge(relayed::routes(mesh.relayed.clone()));
                    workers::by_peer(managers, None)
                }
            };
            let limits = match access {
                Access::Tokens => listener::API,
                Access::Trusted => listener::AGENTS,
            };
            listener.serve(limits, router)
        }));
        let keep_workers = async {
            if let Some(workers) = &workers {
                workers.keep().await;
            }
        };
        // First of all: stopping the rest may take all the time that there is.
        let announce_leaving = async {
            stop.cancelled().await;
            member.announce_leaving(replace.is_cancelled());
        };
        tokio::join!(
            announce_leaving,
            leadership,
            worker.run(stop.clone()),
            stop.run_until_cancelled(async {
                tokio::join!(publish, announce, key, carry, keep, prove, serve, keep_workers)
            }),
        );
        // The next agent repeats any report that the store does not accept now.
        let _ = timeout(LAST_REPORTS, cluster.reported()).await;
        member.leave().await;
        end.cancel();
    };
    let replaced = async {
        replace.cancelled().await;
        stop.cancel();
        sleep(LEAVE_LIMIT).await;
        warn!("the orchestrator did not stop in time; replacing the agent all the same");
    };
    tokio::select! {
        _ = async { tokio::join!(upkeep.run(end.clone()), work) } => {}
        () = replaced => {}
    }
    Ok(match replace.is_cancelled() {
        true => Ended::Replaced,
        false => Ended::Stopped,
    })
}

/// Ends the trial of this agent program once the data path is up and the store was reached.
async fn prove(
    programs: &Programs,
    mut is_up: watch::Receiver<bool>,
    mut present: watch::Receiver<bool>,
    proven: watch::Sender<bool>,
) {
    // A closed channel means that the agent is stopping.
    if is_up.wait_for(|is_up| *is_up).await.is_ok() && present.wait_for(|present| *present).await.is_ok() {
        if let Err(error) = programs.prove() {
            warn!(
                error = error_chain(&error),
                "cannot record that the agent program's trial succeeded"
            );
        }
        proven.send_replace(true);
    }
    std::future::pending::<()>().await;
}

/// Publishes the snapshot whenever the objects change.
async fn publish(
    cluster: &Cluster,
    own: &NodeId,
    attempts: Option<&Attempts>,
    state: &watch::Sender<SourceState>,
) {
    let mut changes = cluster.changes();
    let available = cluster.available();
    let mut logged = LabelErrors::new();
    let mut silent = BTreeSet::new();
    let mut confirm = interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        changes.mark_unchanged();
        let registrations = cluster.registrations();
        let (mut snapshot, errors) = cluster.read(|state| source::snapshot(state, &registrations));
        // A worker does not know the tasks of all nodes.
        let replicas = match attempts.is_none() {
            true => Arc::new(cluster.read(source::replicas)),
            false => Arc::default(),
        };
        mark_own_node(&mut snapshot, own.as_str());
        for error in errors.difference(&logged) {
            warn!("{error}");
        }
        logged = errors;
        let now_silent = silent_nodes(&snapshot);
        if now_silent != silent {
            match now_silent.is_empty() {
                true => info!("the agents of all nodes are registered again"),
                false => warn!(
                    nodes = ?now_silent,
                    "agents are no longer registered: new connections go to other nodes where possible"
                ),
            }
            silent = now_silent;
        }
        let is_available = available.current();
        state.send_if_modified(|state| {
            state.replicas = replicas;
            update(
                state,
                snapshot,
                trouble(is_available, attempts),
                &cluster.store().describe(),
            )
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            _ = confirm.tick() => {}
        }
    }
}

/// This node's agent needs no registration to be known to run: this is the agent.
fn mark_own_node(snapshot: &mut model::Cluster, own: &str) {
    if let Some(node) = snapshot.nodes.get_mut(own) {
        node.silent = false;
    }
}

/// The host names of nodes whose registration has expired.
fn silent_nodes(snapshot: &model::Cluster) -> BTreeSet<String> {
    let silent = snapshot.nodes.values().filter(|node| node.silent);
    silent.map(|node| node.hostname.clone()).collect()
}

/// Why changes are delayed, if they are. A worker knows why its managers do not serve it.
fn trouble(is_available: bool, attempts: Option<&Attempts>) -> Option<String> {
    if is_available {
        return None;
    }
    Some(match attempts.map(Attempts::describe) {
        None => NO_STORE.to_owned(),
        Some(tried) if tried.is_empty() => NO_MANAGER.to_owned(),
        Some(tried) => format!("{NO_MANAGER}; {tried}"),
    })
}

/// Stores a new snapshot; true if receivers must be notified.
fn update(state: &mut SourceState, snapshot: model::Cluster, trouble: Option<String>, origin: &str) -> bool {
    let mut snapshot = Arc::new(snapshot);
    keep_known(&mut snapshot, &state.cluster);
    let is_available = trouble.is_none();
    let is_first = state.confirmed.is_none();
    let is_new = is_first || snapshot != state.cluster;
    let notify = is_new || trouble != state.trouble;
    let now = SystemTime::now();
    if is_available || is_first {
        state.confirmed = Some(now);
    }
    if is_new {
        state.cluster = snapshot;
        state.revision += 1;
        state.changed = Some(now);
    }
    origin.clone_into(&mut state.origin);
    state.trouble = trouble;
    notify
}

/// What this node announces by its registration.
struct Announced {
    datapath: watch::Receiver<NodeDatapath>,
    keys: watch::Receiver<Vec<KeyId>>,
    drained: watch::Receiver<Drained>,
    engine: watch::Receiver<bool>,
}

/// Keeps this node's registration up to date with what it announces, and the agent with what the store
/// acknowledged.
async fn announce(
    cluster: &Cluster,
    member: &Member,
    node: &NodeId,
    mut announced: Announced,
    acknowledged: &watch::Sender<Acknowledged>,
) {
    let mut changes = cluster.changes();
    loop {
        changes.mark_unchanged();
        let datapath = source::datapath_name(announced.datapath.newest());
        let keys = Some(announced.keys.newest());
        let answers = announced.engine.newest();
        let drains = announced.drained.newest();
        let tasks: Vec<_> = drains.tasks.into_iter().collect();
        let stored = cluster.registration(node);
        acknowledged.send_if_modified(|acknowledged| {
            let new = Acknowledged::by_store(stored.as_ref().map(source::datapath));
            let has_changed = *acknowledged != new;
            *acknowledged = new;
            has_changed
        });
        let is_stored = |stored: &Registration| {
            stored.datapath == datapath
                && stored.keys == keys
                && stored.engine == answers
                && stored.drains_node == drains.node
                && stored.drained_tasks == tasks
        };
        if !stored.as_ref().is_some_and(is_stored) {
            member.update_registration(|registration| {
                registration.datapath = datapath;
                registration.keys = keys;
                registration.engine = answers;
                registration.drains_node = drains.node;
                registration.drained_tasks = tasks;
            });
        }
        let ended = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            changed = announced.datapath.changed() => changed.is_err(),
            changed = announced.keys.changed() => changed.is_err(),
            changed = announced.drained.changed() => changed.is_err(),
            changed = announced.engine.changed() => changed.is_err(),
        };
        if ended {
            // The agent is stopping.
            return std::future::pending().await;
        }
    }
}

/// Watches this node's claim to its block of addresses: after an older backup is restored, another node may
/// get it.
async fn keep_block(cluster: &Cluster, reach: &Reach, node: &NodeId, own: super::worker::AddressBlock) {
    let mut tick = interval(KEEP_BLOCK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match reach.block(cluster, node).await {
            Ok(block) if block == own => {}
            Ok(_) => error!("another node has this node's block of addresses: restart this agent"),
            // An unavailable store is already logged elsewhere.
            Err(error) => tracing::debug!(error = error_chain(&error), "cannot check the block of addresses"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn an_unchanged_snapshot_notifies_no_one() {
        let mut state = SourceState::default();
        let mut snapshot = model::Cluster::default();
        assert!(update(&mut state, snapshot.clone(), None, "a store"));
        assert_eq!(state.revision, 1);
        state.confirmed = Some(UNIX_EPOCH);
        assert!(!update(&mut state, snapshot.clone(), None, "a store"));
        assert!(state.confirmed > Some(UNIX_EPOCH), "it is still confirmed");
        snapshot.cluster_id = "c".into();
        assert!(update(&mut state, snapshot, None, "a store"));
        assert_eq!(state.revision, 2);
    }

    #[test]
    fn a_node_that_is_not_registered_yet_does_not_count_as_silent_to_itself() {
        let node = |name: &str| model::Node {
            silent: true,
            ..model::Node::new(name.to_owned(), [192, 0, 2, 1].into(), model::NodeRole::Manager)
        };
        let nodes = ["own", "other"].map(|name| (name.to_owned(), node(name)));
        let mut snapshot = model::Cluster {
            nodes: nodes.into(),
            ..model::Cluster::default()
        };
        mark_own_node(&mut snapshot, "own");
        assert_eq!(silent_nodes(&snapshot), ["other".to_owned()].into());
    }

    #[test]
    fn an_unavailable_store_is_reported_and_confirms_nothing() {
        let mut state = SourceState::default();
        update(&mut state, model::Cluster::default(), None, "a store");
        assert_eq!(trouble(true, None), None);
        // A worker has no store: its operator must look at the managers.
        let attempts = Attempts::default();
        assert!(trouble(false, Some(&attempts)).is_some_and(|text| text.contains("manager")));
        state.confirmed = Some(UNIX_EPOCH);
        assert!(update(
            &mut state,
            model::Cluster::default(),
            trouble(false, None),
            "a store"
        ));
        assert_eq!((state.confirmed, state.revision), (Some(UNIX_EPOCH), 1));
        assert!(state.trouble.is_some());
        assert!(update(&mut state, model::Cluster::default(), None, "a store"));
        assert!(state.trouble.is_none());
    }
}
