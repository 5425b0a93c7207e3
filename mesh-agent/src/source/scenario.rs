//! What scenarios need of the sources: Docker's lists as JSON, and announcements without a network.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Announcements, announcements::AnnouncementSession, swarm};
use crate::model::{Cluster, NodeDatapath, NodeId};

/// Docker's three lists.
pub(crate) struct Lists(swarm::Lists);

impl Lists {
    pub(crate) fn read(services: &Value, tasks: &Value, nodes: &Value) -> Result<Self, String> {
        fn list<T: serde::de::DeserializeOwned>(name: &str, value: &Value) -> Result<Vec<T>, String> {
            serde_json::from_value(value.clone()).map_err(|error| format!("{name}: {error}"))
        }
        Ok(Self(swarm::Lists {
            services: list("services.json", services)?,
            tasks: list("tasks.json", tasks)?,
            nodes: list("nodes.json", nodes)?,
        }))
    }

    pub(crate) fn refused_labels(&self) -> BTreeSet<String> {
        self.0.label_errors().iter().map(ToString::to_string).collect()
    }
}

/// What the nodes' agents have announced to a manager.
#[derive(Default)]
pub(crate) struct Announced {
    announcements: Announcements,
    sessions: BTreeMap<NodeId, AnnouncementSession>,
}

impl Announced {
    /// Announces a node's data path, or ends its connection where it is `disconnected`.
    pub(crate) fn announce(&mut self, node: &str, datapath: &str) -> Result<(), String> {
        if datapath == "disconnected" {
            self.sessions.remove(node);
            return Ok(());
        }
        let datapath: NodeDatapath = serde_json::from_value(Value::String(datapath.to_owned()))
            .map_err(|error| format!("announced: {error}"))?;
        let session = self
            .sessions
            .entry(node.to_owned())
            .or_insert_with(|| self.announcements.open(node));
        session.announce(datapath.into());
        Ok(())
    }

    /// The cluster as a manager publishes it.
    pub(crate) fn cluster(&self, lists: &Lists) -> Cluster {
        let mut cluster = lists.0.cluster("cluster-1");
        self.announcements.put_into(&mut cluster);
        cluster
    }
}
