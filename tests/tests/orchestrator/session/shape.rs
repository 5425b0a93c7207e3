//! The shape of a command's output, without the ids, ages and times that differ from run to run. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

/// A command's output, in comparable pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A table: its columns from left to right, each with its header.
    Table(Vec<Vec<String>>),
    /// JSON, one value or one a line: the paths of all keys.
    Json(BTreeSet<String>),
    /// Anything else, by lines.
    Lines(Vec<String>),
}

impl Shape {
    /// The shape of a text.
    pub(crate) fn of(text: &str) -> Self {
        if let Some(paths) = json(text) {
            return Self::Json(paths);
        }
        if let Some(columns) = table(text) {
            return Self::Table(columns);
        }
        let lines = without_certificates(text).map(|line| plain(line.trim_end()));
        Self::Lines(lines.collect())
    }

    /// Sorts lines that come in any order.
    pub(crate) fn sort(&mut self) {
        if let Self::Lines(lines) = self {
            lines.sort();
        }
    }

    /// The pieces, to be compared one by one.
    pub(crate) fn pieces(&self) -> Vec<String> {
        match self {
            Self::Table(columns) => columns.iter().map(|cells| cells.join(" / ")).collect(),
            Self::Json(paths) => paths.iter().cloned().collect(),
            Self::Lines(lines) => lines.clone(),
        }
    }
}

/// Lines without PEM blocks, which differ each time, and without the empty line after them.
fn without_certificates(text: &str) -> impl Iterator<Item = &str> {
    let (mut inside, mut was_end) = (false, false);
    text.lines().filter(move |line| {
        let is_end = line.starts_with("-----END");
        inside |= line.starts_with("-----BEGIN");
        let hidden = inside || (was_end && line.is_empty());
        inside &= !is_end;
        was_end = is_end;
        !hidden
    })
}

fn json(text: &str) -> Option<BTreeSet<String>> {
    let values: Vec<Value> = match serde_json::from_str::<Value>(text) {
        Ok(value) => vec![value],
        Err(_) => text
            .lines()
            .map(|line| serde_json::from_str(line).ok())
            .collect::<Option<_>>()?,
    };
    let mut paths = BTreeSet::new();
    let mut is_object = false;
    for value in &values {
        is_object |= matches!(value, Value::Object(_) | Value::Array(_));
        collect(value, "", &mut paths);
    }
    is_object.then_some(paths)
}

fn collect(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                paths.insert(path.clone());
                collect(value, &path, paths);
            }
        }
        Value::Array(list) => list
            .iter()
            .for_each(|value| collect(value, &format!("{path}[]"), paths)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Columns, if the first line is a header: capitals, at least two columns.
fn table(text: &str) -> Option<Vec<Vec<String>>> {
    let header = text.lines().next()?;
    let starts = starts(header);
    let is_header = |character: char| character.is_ascii_uppercase() || character == ' ';
    if starts.len() < 2 || !header.chars().all(is_header) {
        return None;
    }
    let mut columns = vec![Vec::new(); starts.len()];
    for line in text.lines() {
        let characters: Vec<char> = line.chars().collect();
        for (index, column) in columns.iter_mut().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(characters.len());
            let cell: String = characters.iter().take(end).skip(starts[index]).collect();
            column.push(plain(cell.trim_end()));
        }
    }
    Some(columns)
}

/// Where columns begin: after the beginning, and after two spaces or more.
fn starts(header: &str) -> Vec<usize> {
    let bytes = header.as_bytes();
    (0..bytes.len())
        .filter(|&at| bytes[at] != b' ' && (at == 0 || (at > 1 && bytes[at - 2..at] == *b"  ")))
        .collect()
}

/// A line without what differs from run to run.
pub(crate) fn plain(line: &str) -> String {
    // Depends on the machine.
    for part in [" CPUs:\t", " Memory:\t"] {
        if line.starts_with(part) {
            return format!("{part}<amount>");
        }
    }
    let mut tokens: Vec<String> = Vec::new();
    for token in line.split(' ') {
        match token {
            "ago" => age(&mut tokens),
            "utc" if tokens.len() >= 3 => {
                let date = tokens.drain(tokens.len() - 3..).next().unwrap_or_default();
                tokens.push(format!("{}<moment>", label(&date)));
            }
            token => tokens.push(shape_of(token)),
        }
    }
    tokens.join(" ")
}

/// Replaces the age at the end: `Less than a second`, `3 seconds`, `About a minute`.
fn age(tokens: &mut Vec<String>) {
    tokens.pop();
    let mut first = tokens.pop().unwrap_or_default();
    if matches!(first.as_str(), "a" | "an") {
        // `About`, or `than` and `Less`.
        first = tokens.pop().unwrap_or_default();
        if first == "than" {
            first = tokens.pop().unwrap_or_default();
        }
    }
    tokens.push(format!("{}<age>", label(&first)));
}

/// The label and the tab before a value's first token, if there are any.
fn label(token: &str) -> &str {
    token.rfind('\t').map_or("", |tab| &token[..=tab])
}

/// A token without what differs: ids, addresses, digests, chosen ports.
fn shape_of(token: &str) -> String {
    // A tab separates tokens as well.
    let mut shaped = String::new();
    for (index, part) in token.split('\t').enumerate() {
        if index > 0 {
            shaped.push('\t');
        }
        shaped.push_str(&shape_of_part(part));
    }
    shaped
}

fn shape_of_part(part: &str) -> String {
    let (body, tail) = part
        .find(['@', ',', ':', ')'])
        .map_or((part, ""), |end| part.split_at(end));
    let is_id = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && matches!(text.len(), 12 | 25)
    };
    if is_id(body) {
        return format!("<id of {}>{tail}", body.len());
    }
    // A task's name with its id: `web.1.abc`.
    if let Some((name, id)) = body.rsplit_once('.')
        && is_id(id)
    {
        return format!("{name}.<id of {}>{tail}", id.len());
    }
    // A release: `28.2.2`, `20.10.24+dfsg1`.
    let numbers = part.split(['+', '-']).next().unwrap_or_default();
    if numbers.split('.').count() == 3 && numbers.split('.').all(|number| number.parse::<u32>().is_ok()) {
        return "<release>".to_owned();
    }
    let host = part.rsplit_once(':').map_or(part, |(host, _)| host);
    if part.parse::<IpAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return "<address>".to_owned();
    }
    // `2026-11-22T01:59:46.123456789Z`
    if part.len() > 20 && part.ends_with('Z') && part.as_bytes()[10] == b'T' {
        return format!("<moment of {}>", part.len());
    }
    part.to_owned()
}

/// Checks of the functions above. The story runs them first: without them it would prove nothing.
pub(crate) fn check() -> anyhow::Result<()> {
    for (line, expected) in [
        ("Running 3 seconds ago", "Running <age>"),
        ("Running less than a second ago", "Running <age>"),
        ("Running about a minute ago", "Running <age>"),
        (" Started:\tAbout an hour ago", " Started:\t<age>"),
        ("q7bn8m1k4xwz", "<id of 12>"),
        (
            "web.1.0123456789abcdefghijklmno@node1 | out",
            "web.1.<id of 25>@node1 | out",
        ),
        ("a 2026-11-22 01:59:46.123 +0000 utc", "a <moment>"),
        ("ID:\t\t0123456789abcdefghijklmno", "ID:\t\t<id of 25>"),
        (
            "Engine Version:\t\t20.10.24+dfsg1",
            "Engine Version:\t\t<release>",
        ),
        (" Address:\t10.99.3.1:2377", " Address:\t<address>"),
    ] {
        let shaped = plain(line);
        anyhow::ensure!(shaped == expected, "{line:?} became {shaped:?}, not {expected:?}");
    }
    let columns = Shape::of("ID   NAME     PORTS\nx    web a    *:80->80/tcp\ny    db       \n");
    let expected = [
        ["ID", "x", "y"],
        ["NAME", "web a", "db"],
        ["PORTS", "*:80->80/tcp", ""],
    ];
    anyhow::ensure!(
        columns == Shape::Table(expected.map(|column| column.map(str::to_owned).to_vec()).to_vec()),
        "{columns:?}"
    );
    Ok(())
}
