//! Random and spoilt frames through the loaded programs, and what must hold for any of them: no run fails, a
//! verdict is one that the hook knows, what passes and what is not ours is left as it came, a sound packet
//! stays sound, and every drop is counted once.

mod generate;
mod ipv6;
mod oracle;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    net::Ipv4Addr,
    ops::AddAssign,
    time::{Duration, Instant},
};

use mesh_agent::{
    datapath::Datapath,
    model::{Desired, Location},
};

pub use self::generate::Generator;
use self::oracle::{
    Fate, fate, has_followers, is_carrier, is_not_ours, is_sound, is_sound_or_fragment, version,
};
use crate::{
    cluster::{DNS, PEER, WEB, serve, serve_ipv6},
    node::Node,
    run::Entry,
};

/// Frames after which the counters are compared.
const BATCH: usize = 64;
/// Batches after which the agent's maintenance runs, which gives the programs the time.
const MAINTENANCE: usize = 256;
/// Batches after which the generator learns by which addresses replicas see IPv6 clients.
const LEARNING: usize = 16;
/// Frames that are kept of what led to a finding.
const HISTORY: usize = 512;

/// A frame and where it comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The hook.
    pub entry: Entry,
    /// The bytes.
    pub frame: Vec<u8>,
}

/// What was found, with the frames that led to it, the last of which shows it.
#[derive(Debug)]
pub struct Finding {
    /// What does not hold.
    pub text: String,
    /// The frames, oldest first.
    pub inputs: Vec<Input>,
}

impl Finding {
    /// The frames as text, a line each, to be kept in a file and read by [`inputs`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("# {}\n", self.text.replace('\n', "\n# "));
        for input in &self.inputs {
            let _ = write!(text, "{} ", input.entry.name());
            for byte in &input.frame {
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        text
    }
}

/// Reads what [`Finding::to_text`] has written.
///
/// # Errors
/// Names the line that is not a hook and a frame.
pub fn inputs(text: &str) -> Result<Vec<Input>, String> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            input(line).ok_or_else(|| format!("not a hook and a frame in hexadecimal digits: {line}"))
        })
        .collect()
}

fn input(line: &str) -> Option<Input> {
    let (name, digits) = line.split_once(' ')?;
    let entry = Entry::ALL.into_iter().find(|entry| entry.name() == name)?;
    let frame = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    Some(Input { entry, frame })
}

/// How many frames had which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Left to the kernel.
    pub passed: u64,
    /// Dropped.
    pub dropped: u64,
    /// Sent on or answered.
    pub sent: u64,
    /// Of those, the ones that came as IPv6.
    pub sent_from_ipv6: u64,
    /// Of those, the ones that left as IPv6.
    pub sent_to_ipv6: u64,
}

impl AddAssign for Tried {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.dropped += other.dropped;
        self.sent += other.sent;
        self.sent_from_ipv6 += other.sent_from_ipv6;
        self.sent_to_ipv6 += other.sent_to_ipv6;
    }
}

/// A node with replicas of its own and of the peer, whose programs are to be tried.
pub fn prepare(node: &mut Node) {
    let mut state: Desired = node.without_services();
    for key in [WEB, DNS] {
        serve(&mut state, key, &[(5, node.local()), (6, Location::Remote(PEER))]);
        serve_ipv6(&mut state, key);
    }
    node.apply(&state);
}

/// Tries frames for a time.
///
/// # Errors
/// The first finding.
pub fn run_for(node: &mut Node, generator: &mut Generator, time: Duration) -> Result<Tried, Finding> {
    let end = Instant::now() + time;
    let mut runner = Runner::new(node);
    while Instant::now() < end {
        runner.batch((0..BATCH).map(|_| generator.input()).collect())?;
        if runner.batches.is_multiple_of(LEARNING) {
            generator.learn(runner.mapped_clients());
        }
    }
    Ok(runner.tried)
}

/// Tries given frames one by one.
///
/// # Errors
/// The first finding.
pub fn replay(node: &mut Node, inputs: Vec<Input>) -> Result<Tried, Finding> {
    let mut runner = Runner::new(node);
    for input in inputs {
        runner.batch(vec![input])?;
    }
    Ok(runner.tried)
}

struct Runner<'a> {
    node: &'a mut Node,
    history: VecDeque<Input>,
    counted: u64,
    batches: usize,
    tried: Tried,
}

impl<'a> Runner<'a> {
    fn new(node: &'a mut Node) -> Self {
        let counted = count(node);
        Self {
            node,
            history: VecDeque::new(),
            counted,
            batches: 0,
            tried: Tried::default(),
        }
    }

    fn batch(&mut self, inputs: Vec<Input>) -> Result<(), Finding> {
        let (mut passed, mut dropped, mut sent) = (0, 0, 0);
        let has_followers = inputs
            .iter()
            .any(|input| has_followers(input.entry, &input.frame));
        for input in inputs {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(input.clone());
            match self.one(&input) {
                Ok(Fate::Dropped) => dropped += 1,
                Ok(Fate::Sent) => sent += 1,
                Ok(Fate::Passed) => passed += 1,
                Err(text) => return Err(self.finding(text)),
            }
        }
        let before = std::mem::replace(&mut self.counted, count(self.node));
        let counted = self.counted - before;
        // What is answered is counted as dropped, too, and so may be what follows.
        if counted < dropped || (counted > dropped + sent && !has_followers) {
            return Err(self.finding(format!(
                "{dropped} frames were dropped and {sent} sent, but {counted} drops counted"
            )));
        }
        self.tried.dropped += dropped;
        self.tried.sent += sent;
        self.tried.passed += passed;
        self.batches += 1;
        if self.batches.is_multiple_of(MAINTENANCE) {
            self.node
                .datapath()
                .maintain()
                .expect("the data path is maintained");
        }
        Ok(())
    }

    fn one(&mut self, input: &Input) -> Result<Fate, String> {
        let Input { entry, frame } = input;
        let output = self
            .node
            .feed(*entry, frame)
            .map_err(|error| format!("the kernel refused a test run: {error}"))?;
        let fate = fate(*entry, output.verdict)
            .ok_or_else(|| format!("{} is no verdict of {}", output.verdict, entry.name()))?;
        if fate == Fate::Passed && output.frame != *frame && !is_carrier(*entry, frame) {
            return Err("a frame was passed on, but written to".to_owned());
        }
        if fate != Fate::Passed && is_not_ours(*entry, frame) {
            return Err("a frame that is not ours was not passed on".to_owned());
        }
        if fate == Fate::Sent {
            self.tried.sent_from_ipv6 += u64::from(version(frame) == Some(6));
            self.tried.sent_to_ipv6 += u64::from(version(&output.frame) == Some(6));
        }
        // A test run gives every packet an Ethernet header, which confuses what makes one.
        let has_ethernet = *entry != Entry::Layer3;
        if fate == Fate::Sent && has_ethernet && is_sound(frame) && !is_sound_or_fragment(&output.frame) {
            let bytes: String = output.frame.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(format!(
                "lengths and checksums were right, and are wrong in what is sent:\n{bytes}"
            ));
        }
        Ok(fate)
    }

    fn mapped_clients(&mut self) -> Vec<Ipv4Addr> {
        let clients = self.node.datapath().mapped_clients(None);
        let clients = clients.expect("the table of IPv6 clients can be read");
        clients.into_iter().map(|client| client.mapped).collect()
    }

    fn finding(&self, text: String) -> Finding {
        Finding {
            text,
            inputs: self.history.iter().cloned().collect(),
        }
    }
}

fn count(node: &mut Node) -> u64 {
    node.drops().values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_read_back_as_it_was_written() {
        let mut generator = Generator::new(7);
        let finding = Finding {
            text: "two\nlines".to_owned(),
            inputs: (0..100).map(|_| generator.input()).collect(),
        };
        assert_eq!(inputs(&finding.to_text()).unwrap(), finding.inputs);
        assert!(inputs("xdp 0").is_err() && inputs("nowhere 00").is_err());
    }
}
