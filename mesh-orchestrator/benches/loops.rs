//! `cargo xtask bench orchestrator`, the control loops: 1,000 nodes and 50,000 tasks scheduled from nothing,
//! then a service added and scaled, a task crashed and a node lost.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_orchestrator::{
    commands,
    loops::Controller,
    objects::{
        Availability, Node, NodeId, NodeRole, NodeStatus, ObjectChange, ServiceId, State, Task, TaskState,
        TaskStatus, Timestamp,
    },
    spec::{Platform, Resources, ServiceSpec},
};

const NODES: u32 = 1_000;
const SERVICES: u32 = 1_000;
const REPLICAS: u32 = 50;
const REPEAT: u32 = 50;
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn main() -> Result<()> {
    for (services, replicas) in [
        (SERVICES, REPLICAS),
        (10, SERVICES * REPLICAS / 10),
        (SERVICES * REPLICAS, 1),
    ] {
        println!("{NODES} nodes, {services} services of {replicas} replicas");
        measure(services, replicas)?;
    }
    Ok(())
}

fn measure(services: u32, replicas: u32) -> Result<()> {
    let mut state = State::default();
    for number in 0..NODES {
        state.apply(&ObjectChange::PutNode(Box::new(node(number))))?;
    }
    for number in 0..services {
        for change in create(&state, &format!("service{number}"), replicas)? {
            state.apply(&change)?;
        }
    }
    let mut controller = Controller::new(state);
    let mut seed = 0;
    let mut step = |controller: &mut Controller, what: &str| -> Result<()> {
        seed += 1;
        let start = cpu_time()?;
        let changes = controller.step(NOW, seed)?;
        report(what, cpu_time()? - start, changes.len());
        Ok(())
    };
    step(&mut controller, "schedule all from nothing")?;
    run_all(&mut controller)?;
    step(&mut controller, "process that all of them run")?;

    // A thread's CPU clock may tick slowly, so these are means.
    let mut times = Repeated::default();
    for number in 0..REPEAT {
        let name = format!("one-more{number}");
        times.measure(|| {
            for change in create(controller.state(), &name, 50)? {
                controller.apply(&change)?;
            }
            Ok(controller.step(NOW, u128::from(number) + 1_000)?.len())
        })?;
    }
    times.report("add a service of 50 replicas");
    run_all(&mut controller)?;
    step(&mut controller, "process that they run")?;

    let mut times = Repeated::default();
    for number in 0..REPEAT {
        let id = ServiceId::from(format!("one-more{number}").as_str());
        times.measure(|| {
            for change in commands::scale_service(controller.state(), &id, 60, NOW)? {
                controller.apply(&change)?;
            }
            Ok(controller.step(NOW, u128::from(number) + 2_000)?.len())
        })?;
    }
    times.report("scale it by 10");

    let mut times = Repeated::default();
    let running = |task: &&Task| task.is_running();
    let tasks: Vec<_> = controller
        .state()
        .tasks()
        .values()
        .filter(running)
        .map(|task| task.id.clone())
        .collect();
    for (number, task) in (0..REPEAT).zip(tasks) {
        times.measure(|| {
            let status = TaskStatus::new(TaskState::Failed, NOW, "crashed");
            controller.apply(&ObjectChange::Observe { task, status })?;
            Ok(controller.step(NOW, u128::from(number) + 3_000)?.len())
        })?;
    }
    times.report("answer a task that crashed");

    for change in
        commands::set_node_status(controller.state(), &NodeId::from("node7"), NodeStatus::Down, NOW)?
    {
        controller.apply(&change)?;
    }
    step(&mut controller, "replace the tasks of a lost node")?;
    Ok(())
}

/// This thread's CPU time, so that other programs on the machine do not count.
fn cpu_time() -> Result<Duration> {
    let statistics =
        std::fs::read_to_string("/proc/thread-self/schedstat").context("reading this thread's CPU time")?;
    let nanoseconds = statistics
        .split_whitespace()
        .next()
        .context("schedstat begins with a number")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// The mean of several measurements.
#[derive(Default)]
struct Repeated {
    total: Duration,
    changes: usize,
    count: u32,
}

impl Repeated {
    fn measure(&mut self, what: impl FnOnce() -> Result<usize>) -> Result<()> {
        let start = cpu_time()?;
        self.changes += what()?;
        self.total += cpu_time()? - start;
        self.count += 1;
        Ok(())
    }

    fn report(&self, what: &str) {
        report(what, self.total / self.count, self.changes / self.count as usize);
    }
}

fn report(what: &str, time: Duration, changes: usize) {
    println!(
        "  {what:<34} {:>9.2} ms {changes:>8} changes",
        time.as_secs_f64() * 1e3
    );
}

fn run_all(controller: &mut Controller) -> Result<()> {
    let assigned = |state: TaskState| state == TaskState::Assigned;
    let tasks: Vec<_> = controller
        .state()
        .tasks()
        .values()
        .filter(|task| assigned(task.status.state))
        .map(|task| task.id.clone())
        .collect();
    for task in tasks {
        controller.apply(&ObjectChange::Observe {
            task,
            status: TaskStatus::new(TaskState::Running, NOW, "runs"),
        })?;
    }
    Ok(())
}

fn create(state: &State, name: &str, replicas: u32) -> Result<Vec<ObjectChange>> {
    let spec = serde_json::json!({
        "name": name,
        "mode": { "replicated": { "replicas": replicas } },
        "task_template": {
            "container_spec": { "image": "nginx" },
            "resources": { "reservations": { "nano_cpus": 100_000_000, "memory_bytes": 64 << 20 } },
            "placement": { "constraints": ["node.labels.disk==ssd"] },
        },
    });
    let spec = ServiceSpec::from_json(spec.to_string().as_bytes())?;
    Ok(commands::create_service(state, ServiceId::from(name), spec, NOW)?)
}

fn node(number: u32) -> Node {
    Node {
        id: NodeId::from(format!("node{number}").as_str()),
        hostname: format!("host{number}"),
        address: String::new(),
        role: NodeRole::Worker,
        labels: [(
            "disk".to_owned(),
            if number.is_multiple_of(10) { "hdd" } else { "ssd" }.to_owned(),
        )]
        .into(),
        engine_labels: [].into(),
        platform: Platform {
            os: "linux".into(),
            architecture: "x86_64".into(),
        },
        resources: Resources {
            nano_cpus: 32_000_000_000,
            memory_bytes: 64 << 30,
        },
        availability: Availability::Active,
        status: NodeStatus::Ready,
        status_since: NOW,
        returned_at: None,
    }
}
