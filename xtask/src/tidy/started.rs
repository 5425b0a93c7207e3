//! Every program that is run is in the table of programs, so that set-up installs it and the tests check for
//! it.

use std::collections::BTreeSet;

use super::{
    Rule, Scanned, Source, Violation,
    scan::{Kind, Token},
    shell,
};
use crate::programs::{OTHER_PROGRAMS, PROGRAMS};

/// Functions whose first argument, or the first element of their list, is a program.
const RUN: &[&str] = &["new", "command", "run", "feed", "output"];

/// Functions that take a set of namespaces, and then a list.
const IN_A_SPACE: &[&str] = &["enter", "enter_network", "join"];

/// Functions that take a whole command line.
const SAY: &[&str] = &["say"];

/// Programs that run another one, named in their arguments.
const WRAPPERS: &[&str] = &["env", "setsid", "unshare", "nsenter", "setpriv"];

/// Options of wrappers whose next argument is their value.
const WITH_VALUE: &[&str] = &["--propagation", "--pdeathsig", "--target"];

/// Programs of our own and of the images of the lab.
const OWN: &[&str] = &["mesh-agent", "meshctl", "mesh-testbed", "mesh-lab", "xtask"];

pub(super) fn check(file: &Scanned<'_>) -> Vec<Violation> {
    let tokens: Vec<Token<'_>> = file
        .tokens
        .iter()
        .filter(|token| token.kind != Kind::Comment)
        .copied()
        .collect();
    let mut programs = Vec::new();
    for at in 0..tokens.len() {
        if tokens[at].kind == Kind::Text {
            programs.extend(in_a_script(&tokens, at));
        }
        if tokens[at].is("(") && at > 0 && tokens[at - 1].kind == Kind::Name {
            programs.extend(in_a_call(&tokens, at));
        }
    }
    unknown(file.source, programs)
}

pub(super) fn script(source: &Source) -> Vec<Violation> {
    let functions: Vec<&str> = source
        .text
        .lines()
        .filter_map(|line| line.split_once("() {").map(|(name, _)| name.trim()))
        .collect();
    let programs = shell::programs(&source.text)
        .into_iter()
        .filter(|(name, _)| !functions.iter().any(|function| name.starts_with(function)))
        .map(|(name, line)| (name, line + 1))
        .collect();
    unknown(source, programs)
}

fn unknown(source: &Source, programs: Vec<(String, usize)>) -> Vec<Violation> {
    let known: BTreeSet<&str> = PROGRAMS
        .iter()
        .map(|program| program.name)
        .chain(OTHER_PROGRAMS.iter().chain(OWN).copied())
        .collect();
    programs
        .into_iter()
        .filter(|(name, _)| {
            let plain = name.rsplit('/').next().unwrap_or(name);
            !known.contains(name.as_str()) && !known.contains(plain)
        })
        .map(|(name, line)| {
            let message =
                format!("`{name}` is run and not declared; add it to xtask/src/programs.rs with its package");
            source.violation(line, Rule::Programs, message)
        })
        .collect()
}

/// The program of a call such as `Command::new("ip")`, `command(["ip", …])` or `lab.run(node, ["ip", …])`.
fn in_a_call(tokens: &[Token<'_>], open: usize) -> Vec<(String, usize)> {
    let name = tokens[open - 1].text;
    let before = |count: usize| open.checked_sub(count).map(|at| tokens[at]);
    let is_attribute =
        before(2).is_some_and(|token| token.is("[")) && before(3).is_some_and(|token| token.is("#"));
    let is_command = || before(4).is_some_and(|token| token.is_name("Command"));
    let is_of_clap = || before(7).is_some_and(|token| token.is_name("clap"));
    if is_attribute || (name == "new" && (!is_command() || is_of_clap())) {
        return Vec::new();
    }
    let is_prefix = |token: &&Token<'_>| token.is("&") || token.is_name("mut");
    let skipped = tokens[open + 1..].iter().take_while(is_prefix).count();
    let arguments = &tokens[open + 1 + skipped..];
    if let [first, ..] = arguments
        && first.kind == Kind::Text
    {
        if SAY.contains(&name) {
            let program = first.text.split_whitespace().next().unwrap_or_default();
            return named(program, first.line).into_iter().collect();
        }
        if RUN.contains(&name) && !is_node(first.text) {
            return named(first.text, first.line).into_iter().collect();
        }
    }
    if !RUN.contains(&name) && !IN_A_SPACE.contains(&name) {
        return Vec::new();
    }
    // The first list of the arguments, at their own level.
    let mut depth = 0;
    for (at, token) in arguments.iter().enumerate() {
        match token {
            _ if token.is("[") && depth == 0 => return in_a_list(&arguments[at + 1..]),
            _ if token.is(";") || (token.is(")") && depth == 0) => break,
            _ if token.is("(") || token.is("{") || token.is("[") => depth += 1,
            _ if token.is(")") || token.is("}") || token.is("]") => depth -= 1,
            _ => {}
        }
    }
    Vec::new()
}

/// The first element, and where that runs another program, what it runs.
fn in_a_list(tokens: &[Token<'_>]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut is_value = false;
    for (at, token) in tokens.iter().enumerate() {
        if token.is("]") {
            break;
        }
        let is_element = token.kind == Kind::Text && (at == 0 || tokens[at - 1].is(","));
        if !is_element {
            if at == 0 {
                break;
            }
            continue;
        }
        let skip = is_value || token.text.starts_with('-') || token.text.contains('=');
        is_value = WITH_VALUE.contains(&token.text);
        if skip {
            continue;
        }
        found.extend(named(token.text, token.line));
        if !WRAPPERS.contains(&token.text) {
            break;
        }
    }
    found
}

/// Programs in the text of a shell script: an argument behind `-c`, or a variable or constant named `script`.
fn in_a_script(tokens: &[Token<'_>], at: usize) -> Vec<(String, usize)> {
    let mut before = at;
    // `format!("…")` counts as its text.
    if before >= 3 && tokens[before - 1].is("(") && tokens[before - 2].is("!") {
        before -= 3;
    }
    let is_argument = before >= 2
        && (tokens[before - 1].is(",") || (tokens[before - 1].is("&") && tokens[before - 2].is(",")))
        && {
            let option = &tokens[before - if tokens[before - 1].is(",") { 2 } else { 3 }];
            option.kind == Kind::Text && matches!(option.text, "-c" | "-euc" | "-ec")
        };
    let is_named = before >= 2 && tokens[before - 1].is("=") && tokens[before - 2].is_name("script");
    if !is_argument && !is_named {
        return Vec::new();
    }
    let first_line = tokens[at].line;
    let text = unescaped(tokens[at].text);
    shell::programs(&text)
        .into_iter()
        .map(|(name, line)| (name, first_line + line))
        .collect()
}

/// A literal's text as the program has it, with line breaks left where the source has them.
fn unescaped(literal: &str) -> String {
    let mut text = String::with_capacity(literal.len());
    let mut letters = literal.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => text.push(';'),
            Some('\n') => text.push_str("\\\n"),
            Some(escaped) => text.push(escaped),
            None => {}
        }
    }
    text
}

/// Whether a first argument is where to run something, rather than what.
fn is_node(name: &str) -> bool {
    name.starts_with("node") || matches!(name, "client" | "wire")
}

/// A program's name, if this can be one.
fn named(name: &str, line: usize) -> Option<(String, usize)> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/_-.+".contains(letter);
    let is_path = ["/usr/", "/lib/", "/bin/", "/sbin/"]
        .iter()
        .any(|folder| name.starts_with(folder));
    let begins_plain = name.starts_with(|letter: char| letter.is_ascii_lowercase());
    ((is_path || begins_plain) && name.chars().all(plain)).then(|| (name.to_owned(), line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::found_in;

    fn unknown(text: &str) -> Vec<String> {
        found_in(text, check)
            .into_iter()
            .map(|violation| violation.message.split('`').nth(1).unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn a_program_outside_the_table_is_reported_however_it_is_run() {
        assert_eq!(unknown("Command::new(\"x1\").args([\"a\"])"), ["x1"]);
        assert_eq!(unknown("run(&mut command([\"x2\", \"b\"]))"), ["x2"]);
        assert_eq!(unknown("lab.run(\"node1\", [\"x3\", \"b\"])"), ["x3"]);
        assert_eq!(unknown("run(\"x4\", &[\"b\"])"), ["x4"]);
        assert_eq!(unknown("space.say(\"x5 --list\")"), ["x5"]);
        assert_eq!(unknown("command([\"env\", \"A=1\", \"x6\"])"), ["x6"]);
        assert_eq!(unknown("command([\"sh\", \"-euc\", \"cat a | x7 b\"])"), ["x7"]);
        assert_eq!(
            unknown("let script = format!(\"cat {a}; x8\\nx9\");"),
            ["x8", "x9"]
        );
    }

    #[test]
    fn programs_of_the_table_pass() {
        let text =
            "Command::new(\"ip\"); run(\"nft\", &[\"list\"]); command([\"sh\", \"-c\", \"mount a b\"])";
        assert!(unknown(text).is_empty(), "{:?}", unknown(text));
    }
}
