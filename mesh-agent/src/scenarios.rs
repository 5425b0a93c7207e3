//! Text scenarios: Docker's lists and what a node finds on itself go in, the plan and the data path's tables
//! come out, step by step, and are compared with what a file says.
//!
//! The files are in `mesh-agent/scenarios`, in the format of txtar: a comment, then sections that begin with
//! `-- NAME --`. Sections of a later step are named `-- STEP/NAME --`.
//!
//! | input | content |
//! |---|---|
//! | `services.json`, `tasks.json`, `nodes.json` | the answers of Docker's API |
//! | `local.json` | the fields of [`Local`] that are not the default |
//! | `announced` | lines `NODE DATAPATH`, or `NODE disconnected` |
//!
//! | output | content |
//! |---|---|
//! | `refused labels` | labels that the mesh does not understand, if any |
//! | `plan` | the changes from the step before |
//! | `dump` | the tables afterwards, as `meshctl datapath dump` prints them |
//!
//! An input that a step does not have stays as it was. With `UPDATE_SCENARIOS=1`, `cargo test -p mesh-agent
//! --lib scenarios` rewrites the outputs; review them as a diff.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    datapath::{Datapath, memory::MemoryDatapath},
    model::{Local, desired::desired},
    plan::plan,
    source::scenario::{Announced, Lists},
};

const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
const OUTPUTS: [&str; 3] = ["refused labels", "plan", "dump"];

#[test]
fn scenarios_end_in_the_plans_and_tables_that_they_describe() {
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut failures = String::new();
    let paths = paths();
    assert!(paths.len() >= 10, "scenarios are missing: {paths:?}");
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let found = play(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if found == text {
            continue;
        }
        if update {
            fs::write(&path, found).unwrap();
        } else {
            let _ = writeln!(failures, "--- {}\n{}", path.display(), diff(&text, &found));
        }
    }
    assert!(
        failures.is_empty(),
        "scenarios have another result (UPDATE_SCENARIOS=1 accepts it):\n{failures}"
    );
}

fn paths() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txtar"))
        .collect();
    paths.sort();
    paths
}

/// A scenario's text with the outputs that it has.
fn play(text: &str) -> Result<String, String> {
    let (comment, sections) = parse(text);
    let mut steps = BTreeMap::<u32, Vec<(&str, &str)>>::new();
    for (name, content) in sections {
        let (step, name) = match name.split_once('/') {
            Some((step, name)) => (step.parse().map_err(|_| format!("'{step}' is no step"))?, name),
            None => (1, name),
        };
        steps.entry(step).or_default().push((name, content));
    }
    let mut played = comment.to_owned();
    let mut inputs = Inputs::default();
    let mut datapath = MemoryDatapath::default();
    for (step, sections) in steps {
        let prefix = match step {
            1 => String::new(),
            step => format!("{step}/"),
        };
        for (name, content) in &sections {
            if !OUTPUTS.contains(name) {
                inputs.read(name, content)?;
                let _ = write!(played, "-- {prefix}{name} --\n{content}");
            }
        }
        for (name, output) in inputs.run(&mut datapath)? {
            let _ = write!(played, "-- {prefix}{name} --\n{output}");
        }
    }
    Ok(played)
}

/// The comment and the sections of a text in txtar's format.
fn parse(text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut starts = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if let Some(name) = line
            .trim_end()
            .strip_prefix("-- ")
            .and_then(|rest| rest.strip_suffix(" --"))
        {
            starts.push((offset, offset + line.len(), name));
        }
        offset += line.len();
    }
    let ends = starts
        .iter()
        .skip(1)
        .map(|(start, ..)| *start)
        .chain([text.len()]);
    let sections = starts
        .iter()
        .zip(ends)
        .map(|((_, begin, name), end)| (*name, &text[*begin..end]));
    let comment = &text[..starts.first().map_or(text.len(), |(start, ..)| *start)];
    (comment, sections.collect())
}

/// What a scenario has put in so far.
struct Inputs {
    services: Value,
    tasks: Value,
    nodes: Value,
    local: Local,
    announced: Announced,
}

impl Default for Inputs {
    fn default() -> Self {
        let empty = || Value::Array(Vec::new());
        Self {
            services: empty(),
            tasks: empty(),
            nodes: empty(),
            local: Local::default(),
            announced: Announced::default(),
        }
    }
}

impl Inputs {
    fn read(&mut self, name: &str, content: &str) -> Result<(), String> {
        let json = || serde_json::from_str(content).map_err(|error| format!("{name}: {error}"));
        match name {
            "services.json" => self.services = json()?,
            "tasks.json" => self.tasks = json()?,
            "nodes.json" => self.nodes = json()?,
            "local.json" => self.local = local(json()?).map_err(|error| format!("{name}: {error}"))?,
            "announced" => {
                for line in content.lines() {
                    let (node, datapath) =
                        line.split_once(' ').ok_or_else(|| format!("announced: {line}"))?;
                    self.announced.announce(node, datapath)?;
                }
            }
            other => return Err(format!("'{other}' is neither an input nor an output")),
        }
        Ok(())
    }

    /// Brings the data path to what is desired now; the outputs, by name.
    fn run(&self, datapath: &mut MemoryDatapath) -> Result<Vec<(&'static str, String)>, String> {
        let lists = Lists::read(&self.services, &self.tasks, &self.nodes)?;
        let cluster = self.announced.cluster(&lists);
        let desired = desired(&cluster, &self.local, SERVICE_ADDRESS);
        let changes = plan(&datapath.state, &desired);
        let errors = datapath.apply(&changes);
        if !errors.is_empty() || datapath.state != desired {
            return Err(format!("the plan does not lead to the desired state: {errors:?}"));
        }
        let mut outputs = Vec::new();
        let refused: BTreeSet<String> = lists.refused_labels();
        if !refused.is_empty() {
            outputs.push((OUTPUTS[0], lines(&refused)));
        }
        outputs.push((OUTPUTS[1], lines(&changes)));
        let dump = datapath.dump(0).map_err(|error| error.to_string())?;
        outputs.push((OUTPUTS[2], dump.to_string()));
        Ok(outputs)
    }
}

/// The fields that are given, and the default of all others.
fn local(fields: Value) -> Result<Local, serde_json::Error> {
    let mut local = serde_json::to_value(Local::default())?;
    if let (Value::Object(local), Value::Object(fields)) = (&mut local, fields) {
        local.extend(fields);
    }
    serde_json::from_value(local)
}

fn lines<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string() + "\n").collect()
}

/// The lines that differ, with the lines around them.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    // The longest common subsequence of the rests from each pair of lines on.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            text.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
            text.push(('-', old[i]));
            i += 1;
        } else {
            text.push(('+', new[j]));
            j += 1;
        }
    }
    let near = |at: usize| {
        let around = &text[at.saturating_sub(2)..(at + 3).min(text.len())];
        around.iter().any(|(sign, _)| *sign != ' ')
    };
    let shown = text
        .iter()
        .enumerate()
        .filter(|(at, (_, line))| near(*at) || line.starts_with("-- "));
    shown
        .map(|(_, (sign, line))| format!("{sign} {line}\n"))
        .collect()
}

#[test]
fn a_difference_shows_the_lines_that_changed() {
    assert_eq!(
        diff("a\nb\nc\nd\ne\nf\ng\n", "a\nb\nc\nX\ne\nf\ng\n"),
        "  b\n  c\n- d\n+ X\n  e\n  f\n"
    );
    assert_eq!(diff("same\n", "same\n"), "");
}
