//! Modules import in one direction, as ARCHITECTURE.md states it.

use super::{
    Rule, Violation,
    modules::{Module, Modules},
    scan::Kind,
};

/// A crate, and which of the workspace's other crates it may import.
const CRATES: &[(&str, &[&str])] = &[
    ("mesh-support/", &[]),
    ("mesh-ebpf/", &[]),
    ("mesh-orchestrator/", &["mesh_support"]),
    ("mesh-agent/", &["mesh_support", "mesh_ebpf", "mesh_orchestrator"]),
    // They drive the mesh as a user would.
    ("xtask/", &["mesh_support"]),
    ("tests/", &["mesh_support", "xtask", "mesh_tests"]),
];

/// The workspace's libraries.
const LIBRARIES: &[&str] = &[
    "mesh_support",
    "mesh_ebpf",
    "mesh_orchestrator",
    "mesh_agent",
    "mesh_tests",
    "xtask",
];

/// What may import a module of the agent, from the lowest: each group only those before it and its own.
const AGENT: &[&[&str]] = &[&["model"], &["plan"], EVERYTHING_BETWEEN, &["agent"], &["bin"]];

/// The modules that the assembly puts together, and their tools: every module that is not named in [`AGENT`].
const EVERYTHING_BETWEEN: &[&str] = &[];

/// Folders whose code takes the time and seeds as arguments, so that it can be tested by them.
const PURE: &[&str] = &[
    "mesh-agent/src/model/",
    "mesh-agent/src/plan",
    "mesh-orchestrator/src/objects/",
    "mesh-orchestrator/src/commands",
    "mesh-orchestrator/src/loops/",
    "mesh-orchestrator/src/spec/",
];

/// Where clocks and randomness come from.
const IMPURE: &[&str] = &[
    "SystemTime",
    "Instant",
    "OffsetDateTime",
    "getrandom",
    "fastrand",
    "OsRng",
];

/// Where aya's types may be.
const AYA: &[&str] = &[
    "mesh-agent/src/datapath/ebpf/",
    "mesh-agent/tests/",
    "mesh-agent/benches/",
    "mesh-agent/testing/",
    "mesh-ebpf/",
];

pub(super) fn check(modules: &Modules<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for module in &modules.all {
        found.extend(foreign(module));
        found.extend(impure(module));
    }
    for used in modules.uses() {
        let (from, to) = (&modules.all[used.from], &modules.all[used.to]);
        if from.root != "mesh-agent/src" || rank(to) <= rank(from) {
            continue;
        }
        let message = format!(
            "`{}` may not import `{}`: binaries -> agent -> the parts -> plan -> model; pass what it needs as an argument, \
             or move it down",
            from.path.join("::"),
            to.path.join("::")
        );
        found.push(from.source.violation(used.line, Rule::Imports, message));
    }
    found
}

fn rank(module: &Module<'_>) -> usize {
    let name = module.path.first().map_or("", String::as_str);
    let between = AGENT.iter().position(|group| group.is_empty()).unwrap_or(0);
    AGENT
        .iter()
        .position(|group| group.contains(&name))
        .unwrap_or(between)
}

/// Paths that begin with a crate that this one may not know.
fn foreign(module: &Module<'_>) -> Vec<Violation> {
    let file = &module.source.path;
    let Some((_, allowed)) = CRATES.iter().find(|(folder, _)| file.starts_with(folder)) else {
        return Vec::new();
    };
    let own = |name: &str| {
        file.split('/')
            .next()
            .is_some_and(|folder| folder.replace('-', "_") == name)
    };
    let mut found = Vec::new();
    for (at, token) in module.tokens.iter().enumerate() {
        let next = |offset: usize| module.tokens.get(at + offset);
        let is_path = token.kind == Kind::Name
            && next(1).is_some_and(|next| next.is(":"))
            && next(2).is_some_and(|next| next.is(":"))
            && !(at > 0 && module.tokens[at - 1].is(":"));
        if !is_path {
            continue;
        }
        if LIBRARIES.contains(&token.text) && !allowed.contains(&token.text) && !own(token.text) {
            let message = format!("this crate may not import `{}`; see ARCHITECTURE.md", token.text);
            found.push(module.source.violation(token.line, Rule::Imports, message));
        }
        if token.text == "aya" && !AYA.iter().any(|folder| file.starts_with(folder)) {
            let message = "aya's types stay in datapath/ebpf; use a type of the data path's own";
            found.push(module.source.violation(token.line, Rule::Imports, message));
        }
    }
    found
}

/// Clocks and randomness where they are arguments.
fn impure(module: &Module<'_>) -> Vec<Violation> {
    let file = &module.source.path;
    if !PURE.iter().any(|folder| file.starts_with(folder)) || file.ends_with("tests.rs") {
        return Vec::new();
    }
    let tokens = &module.tokens;
    (0..tokens.len())
        .filter(|at| tokens[*at].kind == Kind::Name && IMPURE.contains(&tokens[*at].text))
        .filter(|at| {
            let asks = |name: &str| tokens.get(at + 3).is_some_and(|token| token.is_name(name));
            !matches!(tokens[*at].text, "SystemTime" | "Instant" | "OffsetDateTime")
                || asks("now")
                || asks("now_utc")
        })
        .map(|at| {
            let message = format!(
                "`{}` in pure code; take the time or the seed as an argument",
                tokens[at].text
            );
            module.source.violation(tokens[at].line, Rule::Imports, message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::modules::tests::{modules, sources};

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        let sources = sources(files);
        check(&modules(&sources))
            .into_iter()
            .map(|violation| violation.to_string())
            .collect()
    }

    #[test]
    fn a_part_may_not_import_the_assembly_nor_the_model_a_part() {
        let found = messages(&[
            ("mesh-agent/src/lib.rs", ""),
            ("mesh-agent/src/agent/mod.rs", "use crate::doctor::X;"),
            ("mesh-agent/src/doctor/mod.rs", "use crate::{agent::Y, plan::Z};"),
            ("mesh-agent/src/model/mod.rs", "use crate::doctor::X;"),
            ("mesh-agent/src/plan.rs", "use crate::model::M;"),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("mesh-agent/src/doctor/mod.rs:1: imports: `doctor` may not import `agent`")
        );
        assert!(found[1].starts_with("mesh-agent/src/model/mod.rs:1:"));
    }

    #[test]
    fn crates_import_only_those_below_them() {
        let found = messages(&[
            (
                "mesh-orchestrator/src/lib.rs",
                "use mesh_agent::X; use mesh_orchestrator::Y;",
            ),
            ("xtask/src/lib.rs", "fn f() { mesh_ebpf::g() }"),
            (
                "mesh-agent/src/lib.rs",
                "use mesh_orchestrator::Z; use aya::Ebpf;",
            ),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn pure_code_reads_no_clock() {
        let found = messages(&[
            ("mesh-orchestrator/src/lib.rs", ""),
            (
                "mesh-orchestrator/src/loops/slots.rs",
                "fn f(now: SystemTime) { Instant::now(); }",
            ),
            ("mesh-orchestrator/src/store/mod.rs", "fn f() { Instant::now(); }"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
