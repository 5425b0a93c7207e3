//! What the admin socket and the metrics see of the running agent: its last published view, and the data
//! path's counters.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use mesh_support::watched::Watched as _;
use tokio::sync::watch;

use super::ladder::Ladder;
use crate::{
    admin::{Introspect, View},
    config::RunOptions,
    datapath::{
        Counters, DatapathError,
        dump::Dump,
        explain::{Explanation, Question},
        flow_list::{FirstFlows, FlowCursor, FlowFilter},
        limited::LimitedServices,
        mapped::MappedClient,
        monitor::Observations,
    },
    probes::ProbeReport,
    source::SourceState,
};

/// The data path, programmed by the agent's loop and read by [`Introspection`].
#[derive(Clone)]
pub(super) struct SharedLadder(Arc<Mutex<Ladder>>);

impl SharedLadder {
    pub(super) fn new(ladder: Ladder) -> Self {
        Self(Arc::new(Mutex::new(ladder)))
    }

    /// Calls on it are short, and the lock is never held across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Ladder> {
        // A panic elsewhere ends the agent anyway; until then the kernel's maps are as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running agent as the admin socket and the metrics see it.
pub(super) struct Introspection {
    view: ArcSwap<View>,
    datapath: SharedLadder,
    source: watch::Receiver<SourceState>,
    probes: watch::Receiver<ProbeReport>,
    metrics_trouble: watch::Sender<Option<String>>,
    limited: watch::Sender<LimitedServices>,
}

impl Introspection {
    /// An agent that is starting, and knows nothing yet.
    pub(super) fn starting(
        options: &RunOptions,
        datapath: SharedLadder,
        source: watch::Receiver<SourceState>,
        probes: watch::Receiver<ProbeReport>,
    ) -> Self {
        Self {
            view: ArcSwap::from_pointee(View::starting(options.return_mode)),
            datapath,
            source,
            probes,
            metrics_trouble: watch::Sender::new(None),
            limited: watch::Sender::default(),
        }
    }

    /// Where the metrics' server reports why it does not serve.
    pub(super) fn metrics_trouble(&self) -> watch::Sender<Option<String>> {
        self.metrics_trouble.clone()
    }

    /// Takes over what the limits of new connections do.
    pub(super) fn set_limited(&self, limited: LimitedServices) {
        self.limited.send_replace(limited);
    }

    /// When the agent was started.
    pub(super) fn started(&self) -> SystemTime {
        self.view.load().started
    }

    pub(super) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
    }
}

impl Introspect for Introspection {
    fn view(&self) -> Arc<View> {
        let view = self.view.load_full();
        // These wake no one, so the published view may have old ones.
        let SourceState {
            confirmed, replicas, ..
        } = self.source.current();
        let metrics_trouble = self.metrics_trouble.current();
        let probes = self.probes.current();
        let limited = self.limited.current();
        if view.source.confirmed == confirmed
            && view.source.replicas == replicas
            && view.metrics_trouble == metrics_trouble
            && view.probes == probes
            && view.limited == limited
        {
            return view;
        }
        let mut fresh = View::clone(&view);
        fresh.source.confirmed = confirmed;
        fresh.source.replicas = replicas;
        fresh.probes = probes;
        fresh.limited = limited;
        fresh.metrics_trouble = metrics_trouble;
        Arc::new(fresh)
    }

    fn counters(&self) -> Result<Counters, DatapathError> {
        self.datapath.lock().counters()
    }

    fn dump(&self, flows: usize) -> Result<Dump, DatapathError> {
        self.datapath.lock().dump(flows)
    }

    fn explain(&self, question: &Question) -> Result<Explanation, DatapathError> {
        self.datapath.lock().explain(question)
    }

    fn observe(&self, since: Option<u64>) -> Result<Observations, DatapathError> {
        self.datapath.lock().observe(since)
    }

    fn mapped_clients(&self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
        self.datapath.lock().mapped_clients(of)
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> Result<FirstFlows, DatapathError> {
        let mut flows = FirstFlows::new(limit);
        let mut cursor = FlowCursor::default();
        let mut visit = |flow| {
            if filter.admits(&flow) {
                flows.add(flow);
            }
        };
        // The lock is let go between two pages, for the agent's loop. Should that replace the data path
        // meanwhile, the list has some flows of each.
        while self.datapath.lock().read_flows(&mut cursor, &mut visit)? {}
        Ok(flows)
    }
}
