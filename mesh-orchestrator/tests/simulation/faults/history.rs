//! One history: faults and users' requests at random, then nothing fails any more, and the cluster must come
//! to what users asked for.

use std::{sync::Arc, time::Duration};

use mesh_orchestrator::{
    commands::{admit_worker, worker_id},
    objects::{Availability, NodeRole, NodeStatus, State, Task},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Failure, Summary,
    link::{LATEST, World},
    machine::Machine,
    requests::{self, Ledger, Request},
    weather::{Dice, Weather},
};
use crate::settled;

/// Steps in which things fail.
const STEPS: u32 = 30;
/// The time in which the cluster must settle once nothing fails any more: updates that fail wait for their
/// deadlines, and restarts for their delays.
const SETTLES: Duration = Duration::from_secs(1_800);

/// A cluster, its users and what fails.
struct History {
    world: Arc<World>,
    machines: Vec<Machine>,
    /// Users' requests, and the machine that each is made to.
    requests: Vec<(usize, JoinHandle<()>)>,
    ledger: Ledger,
    requested: u64,
}

/// Runs the history of a seed.
pub(super) async fn run(seed: u64, sabotage: bool) -> Result<Summary, Failure> {
    let began = Instant::now();
    let dice = Dice::new(seed);
    let weather = Weather::draw(&mut dice.random());
    // Not drawn: the other histories stay what they were.
    let remote = if seed.is_multiple_of(2) {
        1 + seed / 2 % 2
    } else {
        0
    };
    let world = World::new(dice, weather, remote);
    world.server().ignores_conditions = sabotage;
    tokio::spawn(expire(Arc::clone(&world)));
    let mut history = History::new(&world, began);
    let outcome = history.tell().await;
    // Whatever is in progress ends with the runtime.
    let server = world.server();
    match outcome.and_then(|()| server.violation.clone().map_or(Ok(()), Err)) {
        Ok(()) => Ok(Summary {
            seen: server.oracle.seen.clone(),
            commits: server.revision().0,
            time: began.elapsed(),
            digest: server.digest,
        }),
        Err(text) => Err(Failure {
            seed,
            at: began.elapsed(),
            text: format!("{text}\nwith {weather:?}"),
        }),
    }
}

/// Ends leases, forever.
async fn expire(world: Arc<World>) {
    loop {
        sleep(Duration::from_millis(500)).await;
        world.server().expire();
    }
}

/// An operator admits a node without access to the store.
async fn admit(world: Arc<World>, name: String) {
    loop {
        sleep(Duration::from_millis(500)).await;
        let desk = world.desks().values().next().cloned();
        let Some(desk) = desk else { continue };
        let cluster = desk.cluster();
        let author = cluster.author("operator", "admit");
        let labels = Default::default();
        let made = cluster.change(author, |state, now| admit_worker(state, &name, &labels, now));
        // The manager's agent may be killed.
        let _ = timeout(Duration::from_secs(40), made).await;
        if cluster.read(|state| state.nodes().contains_key(&worker_id(&name))) {
            return;
        }
    }
}

impl History {
    fn new(world: &Arc<World>, began: Instant) -> Self {
        let managers = world.dice.random().between(2, 3);
        let workers = world.dice.random().between(0, 2);
        let machine = |number| {
            let role = if number < managers {
                NodeRole::Manager
            } else {
                NodeRole::Worker
            };
            Machine::new(world, &format!("node{number}"), role, began)
        };
        let mut machines: Vec<Machine> = (0..managers + workers).map(machine).collect();
        machines.extend((0..world.remote).map(|number| Machine::remote(world, number, began)));
        Self {
            world: Arc::clone(world),
            machines,
            requests: Vec::new(),
            ledger: Ledger::default(),
            requested: 0,
        }
    }

    async fn tell(&mut self) -> Result<(), String> {
        for machine in &mut self.machines {
            machine.start();
            if let Some(name) = machine.remote_name() {
                tokio::spawn(admit(Arc::clone(&self.world), name.to_owned()));
            }
        }
        self.count().await?;
        for _ in 0..STEPS {
            let pause = self.world.dice.up_to(4_000);
            sleep(pause).await;
            self.check()?;
            self.step().await?;
        }
        self.settle().await
    }

    /// Creates what is counted, as soon as a machine has a view of the cluster.
    async fn count(&mut self) -> Result<(), String> {
        loop {
            sleep(Duration::from_millis(500)).await;
            if let Some(machine) = self
                .machines
                .iter()
                .position(|machine| machine.remote_name().is_none() && machine.cluster().is_some())
            {
                self.request(machine, requests::counter()?);
                return Ok(());
            }
        }
    }

    fn request(&mut self, machine: usize, request: Request) {
        if let Some(cluster) = self.machines[machine].cluster() {
            let made = tokio::spawn(request.make(cluster, self.ledger.clone()));
            self.requests.push((machine, made));
        }
    }

    /// Something fails or is repaired, and a user asks for something.
    async fn step(&mut self) -> Result<(), String> {
        let weather = self.world.weather();
        let dice = self.world.dice.clone();
        let count = self.machines.len() as u64;
        let any = || usize::try_from(dice.random().below(count)).unwrap_or(0);
        if dice.per_mille(weather.compaction) {
            let mut server = self.world.server();
            let newest = server.revision();
            server.compact(newest);
        }
        if dice.per_mille(weather.partition) {
            self.machines[any()].cut(true);
        }
        if dice.per_mille(weather.agent_crash) {
            self.kill(any());
        }
        if dice.per_mille(weather.agent_crash / 3) {
            let machine = any();
            self.machines[machine].stop().await;
            self.kill(machine);
        }
        if dice.per_mille(weather.power_loss) {
            let machine = any();
            self.kill(machine);
            self.machines[machine].lose_power();
        }
        if dice.per_mille(weather.container_crash) {
            self.machines[any()].crash_container();
        }
        for machine in &mut self.machines {
            if machine.is_cut() && dice.per_mille(250) {
                machine.cut(false);
            }
            if !machine.is_on() && dice.per_mille(300) {
                machine.start();
            }
        }
        let machine = any();
        let requested = self.requested + 1;
        // Users ask members of the store.
        let asked = Some(&self.machines[machine]).filter(|machine| machine.remote_name().is_none());
        let request = asked
            .and_then(Machine::cluster)
            .map(|cluster| cluster.read(|state| requests::draw(&mut dice.random(), state, requested)));
        if let Some(request) = request {
            self.requested = requested;
            self.request(machine, request?);
        }
        Ok(())
    }

    /// Kills a machine's agent, and the requests that it was answering.
    fn kill(&mut self, number: usize) {
        self.machines[number].kill();
        self.requests.retain(|(machine, made)| {
            if *machine == number {
                made.abort();
            }
            *machine != number
        });
    }

    fn check(&self) -> Result<(), String> {
        if let Some(machine) = self.machines.iter().find(|machine| machine.has_failed()) {
            return Err(format!("the agent of {} ended", machine.node));
        }
        self.world.server().violation.clone().map_or(Ok(()), Err)
    }

    /// Nothing fails any more.
    async fn settle(&mut self) -> Result<(), String> {
        self.world.calm();
        for machine in &mut self.machines {
            machine.cut(false);
            if !machine.is_on() {
                machine.start();
            }
        }
        // Users' requests come to an end.
        let over = Instant::now() + Duration::from_secs(90);
        while !self.requests.is_empty() {
            if Instant::now() > over {
                return Err(format!("{} requests are not answered", self.requests.len()));
            }
            sleep(Duration::from_secs(1)).await;
            self.check()?;
            self.requests.retain(|(_, made)| !made.is_finished());
        }
        // So do those that the store carries out late.
        sleep(LATEST).await;
        let nodes: Vec<_> = self.machines.iter().map(|machine| machine.node.clone()).collect();
        for node in nodes {
            self.request(0, Request::SetAvailability(node, Availability::Active));
        }
        let until = Instant::now() + SETTLES;
        loop {
            sleep(Duration::from_secs(5)).await;
            self.check()?;
            match self.settled() {
                Ok(()) => return Ok(()),
                Err(text) if Instant::now() > until => return Err(format!("not settled: {text}")),
                Err(_) => {}
            }
        }
    }

    fn settled(&self) -> Result<(), String> {
        let server = self.world.server();
        let state = server.oracle.state();
        if let Some(node) = state
            .nodes()
            .values()
            .find(|node| node.status != NodeStatus::Ready || node.availability != Availability::Active)
        {
            return Err(format!(
                "{} is {} and {}",
                node.id, node.status, node.availability
            ));
        }
        if let Some(task) = state
            .tasks()
            .values()
            .find(|task| task.is_stopping() || task.is_dead())
        {
            return Err(format!("a task is left over: {task:#?}"));
        }
        for service in state.services().values() {
            settled::check(state, service)?;
        }
        self.ledger.check(state)?;
        server.oracle.check_specs()?;
        for machine in &self.machines {
            self.same(machine, state)?;
        }
        Ok(())
    }

    /// A machine runs and knows what is stored.
    fn same(&self, machine: &Machine, state: &State) -> Result<(), String> {
        if !state.nodes().contains_key(&machine.node) {
            return Err(format!("{} is not there", machine.node));
        }
        let on_it = |task: &&Task| task.node.as_ref() == Some(&machine.node);
        let stored: Vec<_> = state
            .tasks()
            .values()
            .filter(|task| on_it(task) && task.is_running())
            .map(|task| task.id.clone())
            .collect();
        let running = machine.running();
        if stored != running {
            return Err(format!(
                "{} runs {running:?}, stored are {stored:?}",
                machine.node
            ));
        }
        let cluster = machine.cluster().ok_or("an agent has no view of the cluster")?;
        let is_same = cluster.read(|mirror| match machine.remote_name() {
            Some(_) => {
                let own =
                    |state: &State| -> Vec<Task> { state.tasks().values().filter(on_it).cloned().collect() };
                own(mirror) == own(state)
                    && mirror.nodes().get(&machine.node) == state.nodes().get(&machine.node)
            }
            None => {
                mirror.tasks() == state.tasks()
                    && mirror.services() == state.services()
                    && mirror.nodes() == state.nodes()
                    && mirror.port_ledger() == state.port_ledger()
            }
        });
        match is_same {
            true => Ok(()),
            false => Err(format!(
                "{} has another view of the cluster than the store",
                machine.node
            )),
        }
    }
}
