//! The replicas that an operator drains on this node. They are recorded in the agent's run folder: a drain
//! outlives the agent, and ends with a reboot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mesh_support::error_chain;
use mesh_support::watched::Watched as _;
use tokio::sync::watch;
use tracing::{info, warn};

use super::datapath_factory::run_folder;
use crate::model::{
    Cluster, DrainRequest, DrainTarget, Drained, Node, NodeDatapath, ServiceId, Task, TaskId, TaskState,
};

/// The record's name in the run folder.
const RECORD: &str = "drained.json";

/// What this node drains, and where it is recorded.
pub(super) struct Drains {
    record: PathBuf,
    drained: watch::Sender<Drained>,
}

impl Drains {
    /// What an earlier agent has recorded. A record that cannot be read is logged, and drains nothing.
    pub(super) fn load(admin_socket: &Path) -> Self {
        let record = record(admin_socket);
        let recorded = match fs::read(&record) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Drained::default()),
            Err(error) => Err(error),
        };
        let drained = recorded.unwrap_or_else(|error| {
            warn!(
                record = %record.display(),
                error = error_chain(&error),
                "cannot read which replicas are drained; none is, until `meshctl drain` is run again"
            );
            Drained::default()
        });
        Self {
            record,
            drained: watch::Sender::new(drained),
        }
    }

    /// What is drained, as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Drained> {
        self.drained.subscribe()
    }

    pub(super) fn current(&self) -> Drained {
        self.drained.current()
    }

    /// Carries out a request. Nothing has changed where it is refused.
    pub(super) fn execute(&self, request: &DrainRequest, cluster: &Cluster, own: &str) -> Result<(), String> {
        let new = change(&self.current(), request, cluster, own)?;
        self.set(new)
    }

    /// Forgets tasks that have ended: their ids are never used again.
    pub(super) fn forget(&self, exists: impl Fn(&TaskId) -> bool) {
        let mut new = self.current();
        new.tasks.retain(|task| exists(task));
        if let Err(error) = self.set(new) {
            warn!(error, "a drained task has ended, and stays in the record");
        }
    }

    fn set(&self, new: Drained) -> Result<(), String> {
        if self.drained.current() == new {
            return Ok(());
        }
        write(&self.record, &new).map_err(|error| {
            format!(
                "cannot record in {} which replicas are drained: {}",
                self.record.display(),
                error_chain(&error)
            )
        })?;
        info!(node = new.node, tasks = ?new.tasks, "the drained replicas have changed");
        self.drained.send_replace(new);
        Ok(())
    }
}

/// Removes the record; true if there was one.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove_record(admin_socket: &Path) -> Result<bool, String> {
    let record = record(admin_socket);
    match fs::remove_file(&record) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("remove {}: {error}", record.display())),
    }
}

fn record(admin_socket: &Path) -> PathBuf {
    run_folder(admin_socket).join(RECORD)
}

/// Replaces the record as a whole, or removes it where nothing is drained.
fn write(record: &Path, drained: &Drained) -> io::Result<()> {
    if drained.is_empty() {
        return match fs::remove_file(record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let new = record.with_extension("new");
    fs::write(&new, serde_json::to_vec(drained)?)?;
    fs::rename(&new, record)
}

/// What is to be drained after a request.
fn change(
    current: &Drained,
    request: &DrainRequest,
    cluster: &Cluster,
    own: &str,
) -> Result<Drained, String> {
    let mut new = current.clone();
    match target(&request.target, cluster, own)? {
        DrainTarget::Node(_) if request.undo => new = Drained::default(),
        DrainTarget::Node(_) => new.node = true,
        DrainTarget::Task(..) if request.undo && current.node => {
            return Err(format!(
                "the whole node is drained: `meshctl undrain {}` ends that",
                hostname(cluster, own)
            ));
        }
        DrainTarget::Task(task, _) if request.undo => {
            new.tasks.remove(task);
        }
        DrainTarget::Task(task, _) => {
            if new.tasks.len() >= Drained::MAX_TASKS && !new.tasks.contains(task) {
                return Err(format!(
                    "{} tasks are drained here already, and more cannot be announced: drain the whole node with \
                     `meshctl drain {}`",
                    new.tasks.len(),
                    hostname(cluster, own)
                ));
            }
            new.tasks.insert(task.clone());
        }
    }
    if request.undo || request.force {
        return Ok(new);
    }
    match left_without(cluster, own, current, &new) {
        None => Ok(new),
        Some(service) => {
            let name = cluster
                .services
                .get(service)
                .map_or(service, |service| &service.name);
            Err(format!(
                "{name} has no other replica that takes new connections: scale it up or wait for another one; with \
                 --force its new connections are refused until `meshctl undrain`"
            ))
        }
    }
}

/// What a name or id stands for: this node, or one of its tasks.
fn target<'a>(name: &str, cluster: &'a Cluster, own: &str) -> Result<DrainTarget<'a>, String> {
    let there = |node: &str| {
        format!(
            "run the command on {} or on a manager: other nodes drain only what runs on them",
            hostname(cluster, node)
        )
    };
    match DrainTarget::find(name, cluster, own) {
        Some(target) if target.node() == own => Ok(target),
        Some(DrainTarget::Node(node)) => Err(format!("{name} is another node; {}", there(node))),
        Some(DrainTarget::Task(_, task)) => {
            Err(format!("{name} runs on another node; {}", there(&task.node)))
        }
        None => Err(format!(
            "no such node or running task: {name}; `meshctl routes` lists them"
        )),
    }
}

fn hostname<'a>(cluster: &'a Cluster, id: &'a str) -> &'a str {
    cluster.nodes.get(id).map_or(id, |node| &node.hostname)
}

/// A service whose last replica that takes new connections would be drained.
fn left_without<'a>(
    cluster: &'a Cluster,
    own: &str,
    current: &Drained,
    new: &Drained,
) -> Option<&'a ServiceId> {
    let takes = |id: &TaskId, task: &Task, drained: &Drained| {
        let node = cluster.nodes.get(&task.node);
        let serves = if task.node == own {
            !drained.contains(id)
        } else {
            node.is_some_and(|node| serves(node) && !node.drained.contains(id))
        };
        let fails = node.is_some_and(|node| node.failed.reason(id).is_some());
        task.state == TaskState::Active && serves && !fails
    };
    let has = |service: &ServiceId, drained: &Drained| {
        let mut tasks = cluster.tasks.iter();
        tasks.any(|(id, task)| task.service == *service && takes(id, task, drained))
    };
    cluster
        .services
        .keys()
        .find(|service| has(service, current) && !has(service, new))
}

/// Whether other nodes send new connections to a node's replicas.
fn serves(node: &Node) -> bool {
    node.ready
        && !node.silent
        && match node.datapath {
            NodeDatapath::Ebpf | NodeDatapath::Ipvs => true,
            NodeDatapath::None | NodeDatapath::Leaving | NodeDatapath::Unknown => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    /// `web` with one active replica here, one on n2, and one on n3, which is not ready.
    fn cluster() -> Cluster {
        let (view, _) = fixture::two_nodes();
        Cluster::clone(&view.source.cluster)
    }

    fn request(target: &str) -> DrainRequest {
        DrainRequest {
            target: target.to_owned(),
            undo: false,
            force: false,
        }
    }

    fn drain(current: &Drained, target: &str) -> Result<Drained, String> {
        change(current, &request(target), &cluster(), "id1")
    }

    fn tasks(ids: &[&str]) -> Drained {
        Drained {
            node: false,
            tasks: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[test]
    fn this_node_and_its_tasks_can_be_named_by_name_and_by_id() {
        let nothing = Drained::default();
        for name in ["web.1", "t1"] {
            assert_eq!(drain(&nothing, name).unwrap(), tasks(&["t1"]), "{name}");
        }
        for name in ["n1", "id1"] {
            assert!(drain(&nothing, name).unwrap().node, "{name}");
        }
    }

    #[test]
    fn what_runs_elsewhere_is_refused_with_the_node_to_go_to() {
        let nothing = Drained::default();
        for name in ["web.2", "t2", "n2", "id2"] {
            let refusal = drain(&nothing, name).unwrap_err();
            assert!(refusal.contains("run the command on n2"), "{refusal}");
        }
        let refusal = drain(&nothing, "web.9").unwrap_err();
        assert!(
            refusal.contains("no such node or running task: web.9"),
            "{refusal}"
        );
    }

    #[test]
    fn the_last_replica_that_takes_connections_is_drained_by_force_only() {
        let mut cluster = cluster();
        // The third node is not ready, so only this node's replica is left.
        cluster.nodes.get_mut("id2").unwrap().drained = tasks(&["t2"]);
        for target in ["web.1", "n1"] {
            let mut request = request(target);
            let refusal = change(&Drained::default(), &request, &cluster, "id1").unwrap_err();
            assert!(
                refusal.starts_with("web has no other replica") && refusal.contains("--force"),
                "{refusal}"
            );
            request.force = true;
            change(&Drained::default(), &request, &cluster, "id1").unwrap();
        }
    }

    #[test]
    fn undrain_ends_what_it_names_and_of_the_node_everything() {
        let undo = |current: &Drained, target: &str| {
            let request = DrainRequest {
                undo: true,
                ..request(target)
            };
            change(current, &request, &cluster(), "id1")
        };
        assert!(undo(&tasks(&["t1"]), "web.1").unwrap().is_empty());
        let all = Drained {
            node: true,
            ..tasks(&["t1"])
        };
        assert!(undo(&all, "n1").unwrap().is_empty());
        let refusal = undo(&all, "web.1").unwrap_err();
        assert!(refusal.contains("meshctl undrain n1"), "{refusal}");
    }

    #[test]
    fn more_tasks_than_fit_into_an_announcement_are_refused() {
        let ids: Vec<_> = (0..Drained::MAX_TASKS)
            .map(|number| format!("{number:025}"))
            .collect();
        let full = tasks(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let refusal = drain(&full, "web.1").unwrap_err();
        assert!(refusal.contains("meshctl drain n1"), "{refusal}");
    }

    #[test]
    fn a_drain_outlives_the_agent_until_its_task_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let drains = Drains::load(&socket);
        drains.execute(&request("web.1"), &cluster(), "id1").unwrap();
        let again = Drains::load(&socket);
        assert_eq!(again.current(), tasks(&["t1"]));
        again.forget(|_| true);
        assert_eq!(again.current(), tasks(&["t1"]));
        again.forget(|_| false);
        assert!(Drains::load(&socket).current().is_empty());
        assert!(!remove_record(&socket).unwrap(), "an empty record is removed");
    }

    #[test]
    fn a_damaged_record_drains_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        fs::write(folder.path().join(RECORD), "{").unwrap();
        assert!(Drains::load(&socket).current().is_empty());
        assert!(remove_record(&socket).unwrap());
    }
}
