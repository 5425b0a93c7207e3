//! Groups of stories: each has a lab and agents of its kind. A lab is kept for the next group if that can use
//! it, since one takes longer to bring up than most stories do.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use libtest_mimic::Trial;
use xtask::lab::{Offloads, Topology};

use crate::fixture::Fixture;

/// One story: its name and what it does.
pub(crate) type Story = (&'static str, fn(&Fixture) -> Result<()>);

/// The two parts of the groups, which take about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// What changes while requests go on: replicas, nodes and agents. Mostly waits.
    Changes,
    /// The same requests by other hooks, and over other wires.
    Variants,
}

impl Lane {
    /// The lane that `MESH_LANE` names; `None`: both.
    pub(crate) fn chosen() -> Result<Option<Self>> {
        match std::env::var("MESH_LANE").as_deref() {
            Err(_) => Ok(None),
            Ok("changes") => Ok(Some(Self::Changes)),
            Ok("variants") => Ok(Some(Self::Variants)),
            Ok(other) => bail!("MESH_LANE is `changes` or `variants`, not `{other}`"),
        }
    }

    /// The name of the lab of its groups.
    fn lab(self) -> &'static str {
        match self {
            Self::Changes => "swarm",
            Self::Variants => "variants",
        }
    }
}

/// Stories that are run one after the other in one lab.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    /// The first part of its stories' names.
    pub(crate) name: &'static str,
    /// The part of the groups that it is in.
    pub(crate) lane: Lane,
    /// How many of the three nodes manage.
    pub(crate) managers: usize,
    /// Whether the wire leaves checksums and segmentation to the receiver.
    pub(crate) offloads: Offloads,
    /// How the nodes are connected.
    pub(crate) topology: Topology,
    /// The agents' arguments; `None`: the stories start agents by themselves, if at all.
    pub(crate) agents: Option<&'static [&'static str]>,
    /// Whether the kernel must have what not every one has: IPVS, VLAN devices or bonds. Such a group runs
    /// only with `--ignored`.
    pub(crate) needs_a_vm: bool,
    pub(crate) stories: &'static [&'static [Story]],
}

/// The lab between two stories.
#[derive(Default)]
pub(crate) struct Shared {
    fixture: Option<Fixture>,
    /// The group whose agents run.
    group: &'static str,
    /// Whether a story of that group has failed, or panicked.
    failed: bool,
}

/// The group's stories as tests.
pub(crate) fn trials(group: Group, shared: &Arc<Mutex<Shared>>) -> Vec<Trial> {
    group
        .stories
        .iter()
        .copied()
        .flatten()
        .map(|&(name, story)| {
            let shared = Arc::clone(shared);
            Trial::test(format!("{}::{name}", group.name), move || {
                // A story that panicked leaves the lab to the next one.
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared
                    .run(group, story)
                    .map_err(|error| format!("{error:?}").into())
            })
            .with_ignored_flag(group.needs_a_vm)
        })
        .collect()
}

impl Shared {
    fn run(&mut self, group: Group, story: fn(&Fixture) -> Result<()>) -> Result<()> {
        if self.group != group.name {
            self.begin(group)?;
        }
        // Until the story has passed: it may panic.
        let failed = std::mem::replace(&mut self.failed, true);
        let begin = Instant::now();
        let fixture = self.fixture(group)?;
        fixture.reset().context("could not put the lab back in order")?;
        let prepared = begin.elapsed();
        story(fixture).with_context(|| fixture.evidence())?;
        println!(
            "    {:.1} s, and {:.1} s to prepare the lab",
            (begin.elapsed() - prepared).as_secs_f64(),
            prepared.as_secs_f64()
        );
        self.failed = failed;
        Ok(())
    }

    /// Keeps the lab of the group before if it fits, and every story of that group passed.
    fn begin(&mut self, group: Group) -> Result<()> {
        let failed = std::mem::replace(&mut self.failed, false);
        self.group = group.name;
        let kept = self
            .fixture
            .take()
            .filter(|fixture| !failed && fixture.can_become(group.managers, group.offloads, group.topology));
        if let Some(mut fixture) = kept {
            fixture
                .become_fresh(group.managers)
                .context("could not make the last group's lab fit for this one")?;
            self.fixture = Some(fixture);
        }
        Ok(())
    }

    fn fixture(&mut self, group: Group) -> Result<&Fixture> {
        let mut fixture = match self.fixture.take() {
            Some(fixture) => fixture,
            None => Fixture::up(group.lane.lab(), group.managers, group.offloads, group.topology)?,
        };
        fixture.with_agents = group.agents.is_some();
        fixture.arguments = group.agents.unwrap_or_default();
        Ok(self.fixture.insert(fixture))
    }
}
