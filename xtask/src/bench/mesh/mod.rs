//! `cargo xtask bench mesh`: the mesh beside Docker's own and other load balancers, in the lab, under this
//! kernel or in a virtual machine under Debian's. Depends on `lab`, `setup`, `build` and `vm`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::{
    contender::Contender,
    fixture::{Fixture, Outcome, Replica},
    report::{Metric, Sample},
};
use super::Format;
use crate::{
    build,
    command::{self, command},
    lab::wait_until,
    programs::Need,
    setup,
    vm::{MachineArguments, machine::quote},
};

mod contender;
mod fixture;
mod report;

/// What to measure, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How to print the figures.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// How often each contender is measured; the ratios' spread is over these.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How many connections there are at once; bulk transfers have one.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Who is measured, the reference first; without it: beside Docker's mesh where the kernel has IPVS,
    /// beside nftables and HAProxy where not.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    contenders: Vec<Contender>,
    /// Leave checksums and segmentation to the receiver, as veth pairs do; the eBPF data path is tc's then.
    #[arg(long)]
    offloads: bool,
    /// Measure under another kernel, in a virtual machine.
    #[arg(long)]
    vm: bool,
    /// Everything is set up and built.
    #[arg(long, hide = true)]
    prepared: bool,
    #[command(flatten)]
    machine: MachineArguments,
}

/// Sets up, builds and measures. Standard output gets the figures and nothing else.
///
/// # Errors
/// When a step fails, or another contender has answered than the one that was measured.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let figures_to = crate::command::silence_standard_output()?;
    if !arguments.prepared {
        build::run(setup::packages(&[Need::Build, Need::Lab, Need::Bench])?)?;
    }
    if arguments.vm {
        let machine = arguments.machine.machine()?;
        nix::unistd::dup2_stdout(figures_to).context("standard output cannot be put back")?;
        return match machine.run(&inside(arguments)?)? {
            0 => Ok(()),
            code => bail!("the measurement failed in the virtual machine (exit code {code})"),
        };
    }
    let contenders = contenders(arguments)?;
    let samples = measure(arguments, &contenders)?;
    nix::unistd::dup2_stdout(figures_to).context("standard output cannot be put back")?;
    let reference = contenders[0];
    let rows = report::rows(&samples, &contenders, reference);
    match arguments.format {
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&rows).context("the figures are no JSON")?
        ),
        Format::Table => {
            let kernel = command::run(&mut command(["uname", "-r"]))?;
            println!(
                "Linux {kernel}; medians of {} rounds of {} s; ratios to {reference} and their spread; CPU is the whole \
                 machine's",
                arguments.rounds, arguments.seconds
            );
            println!("{}", report::table(&rows, &contenders));
        }
    }
    Ok(())
}

/// The same command as it is run in the virtual machine.
fn inside(arguments: &Arguments) -> Result<String> {
    let this = std::env::current_exe().context("this program does not know where it is")?;
    let mut command_line = vec![
        this.to_string_lossy().into_owned(),
        "bench".into(),
        "mesh".into(),
        "--prepared".into(),
        "--rounds".into(),
        arguments.rounds.to_string(),
        "--seconds".into(),
        arguments.seconds.to_string(),
        "--concurrency".into(),
        arguments.concurrency.to_string(),
        "--format".into(),
        match arguments.format {
            Format::Table => "table".into(),
            Format::Json => "json".into(),
        },
    ];
    if !arguments.contenders.is_empty() {
        let names: Vec<String> = arguments.contenders.iter().map(Contender::to_string).collect();
        command_line.extend(["--contenders".into(), names.join(",")]);
    }
    if arguments.offloads {
        command_line.push("--offloads".into());
    }
    let command_line: Vec<String> = command_line.iter().map(|argument| quote(argument)).collect();
    Ok(format!(
        "{} && {}",
        crate::vm::suite::swarm_preparation()?,
        command_line.join(" ")
    ))
}

/// Who is measured, the reference first.
fn contenders(arguments: &Arguments) -> Result<Vec<Contender>> {
    if !arguments.contenders.is_empty() {
        return Ok(arguments.contenders.clone());
    }
    // Built in, or to be loaded; a kernel without modules has no modprobe to ask.
    let _ = command::output(&mut command(["modprobe", "--quiet", "ip_vs"]));
    let chosen = if std::path::Path::new("/proc/net/ip_vs").exists() {
        Contender::WITH_DOCKER
    } else {
        Contender::WITHOUT_IPVS
    };
    Ok(chosen.to_vec())
}

fn measure(arguments: &Arguments, contenders: &[Contender]) -> Result<Vec<Sample>> {
    let fixture = Fixture::up(arguments.offloads)?;
    let outcome = rounds(arguments, contenders, &fixture);
    if outcome.is_err() {
        eprintln!(
            "end of the log of node1's agent, if there was one:\n{}",
            fixture.lab.agent_log_tail("node1", 15)
        );
    }
    fixture.lab.down()?;
    outcome
}

fn rounds(arguments: &Arguments, contenders: &[Contender], fixture: &Fixture) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut turn = 0;
    for round in 0..arguments.rounds as usize {
        for index in 0..contenders.len() {
            // Each is first once, so that none profits from its turn.
            let contender = contenders[(index + round) % contenders.len()];
            println!("  round {} of {}: {contender}", round + 1, arguments.rounds);
            contender
                .start(fixture)
                .with_context(|| format!("could not start {contender}"))?;
            for replica in Replica::ALL {
                let before = contender.counted(fixture, replica)?;
                let (figures, connections) = one(arguments, contender, fixture, replica, &mut turn)
                    .with_context(|| format!("{contender}, {replica} replica"))?;
                if let Some(before) = before {
                    until_counted(contender, fixture, replica, before + connections)?;
                }
                samples.extend(figures.into_iter().map(|(metric, value)| Sample {
                    replica,
                    metric,
                    contender,
                    round,
                    value,
                }));
            }
            contender
                .stop(fixture)
                .with_context(|| format!("could not stop {contender}"))?;
        }
    }
    Ok(samples)
}

/// Waits until the mesh has counted what it should have balanced; IPVS sums its counters up every two
/// seconds. A client that uses a port again may be going on with a connection, for all that a node knows that
/// does not see the answers (direct return): not every connection is counted there.
fn until_counted(contender: Contender, fixture: &Fixture, replica: Replica, expected: f64) -> Result<()> {
    let what = format!("{contender} to have balanced what was measured to its {replica} replica");
    wait_until(&what, Duration::from_secs(10), || {
        let counted = contender.counted(fixture, replica)?.unwrap_or_default();
        ensure!(
            counted >= expected * 0.95,
            "{counted} of {expected} connections are counted: something else has answered"
        );
        Ok(())
    })
}

/// All figures of one contender for one replica, and how many connections were made for them at least.
fn one(
    arguments: &Arguments,
    contender: Contender,
    fixture: &Fixture,
    replica: Replica,
    turn: &mut usize,
) -> Result<(Vec<(Metric, f64)>, f64)> {
    let target = contender.aim(fixture, replica)?;
    let mut figures = Vec::new();
    let mut connections = 0.0;
    for measure in ["connections", "requests", "upload", "download"] {
        let bulk = matches!(measure, "upload" | "download");
        let concurrency = if bulk { 1 } else { arguments.concurrency };
        let before = busy_microseconds()?;
        let outcome = fixture
            .load(measure, &target, arguments.seconds, concurrency, *turn)
            .with_context(|| format!("{measure} to {target}"))?;
        let busy = busy_microseconds()? - before;
        *turn += 1;
        connections += if measure == "connections" {
            outcome.count as f64
        } else {
            concurrency as f64
        };
        figures.extend(derive(measure, &outcome, busy));
    }
    Ok((figures, connections))
}

fn derive(measure: &str, outcome: &Outcome, busy: f64) -> Vec<(Metric, f64)> {
    let rate = outcome.count as f64 / outcome.seconds;
    let each = busy / outcome.count as f64;
    match measure {
        "connections" => vec![
            (Metric::ConnectionsPerSecond, rate),
            (Metric::ConnectionMedian, outcome.median_us),
            (Metric::ConnectionP99, outcome.p99_us),
            (Metric::ConnectionCpu, each),
        ],
        "requests" => vec![(Metric::RequestsPerSecond, rate), (Metric::RequestCpu, each)],
        "upload" => vec![(Metric::Upload, rate / 1e6)],
        _ => vec![(Metric::Download, rate / 1e6)],
    }
}

/// Processor time that this machine has spent since its start, interrupts included.
fn busy_microseconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("could not read /proc/stat")?;
    parse_busy(&text).context("/proc/stat has no line of all processors")
}

/// User, nice, system, irq and softirq, in the ticks of 10 ms that Linux shows to users.
fn parse_busy(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<f64> = fields.by_ref().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq) * 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        let text = "cpu  1 2 3 100 50 4 5 6 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n";
        assert_eq!(parse_busy(text), Some(150_000.0));
        assert_eq!(parse_busy("intr 1"), None);
    }
}
