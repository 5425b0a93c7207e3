//! Every test binary is run by some command: one that nothing runs proves nothing.

use super::{Rule, Source, Violation};
use crate::test_binaries::ALL;

pub(super) fn check(sources: &[Source]) -> Vec<Violation> {
    sources
        .iter()
        .filter_map(|source| {
            let (package, name) = target(&source.path)?;
            let is_run = ALL.iter().any(|listed| listed.folder == package && listed.name == name);
            (!is_run).then(|| {
                let message = format!(
                    "no command runs the test binary `{name}` of {package}; add it to xtask/src/test_binaries.rs"
                );
                source.violation(1, Rule::Targets, message)
            })
        })
        .collect()
}

/// The package's folder and the name of the test binary that a file is the root of.
fn target(path: &str) -> Option<(&str, &str)> {
    let (package, inside) = path.split_once('/')?;
    let inside = inside.strip_prefix("tests/")?;
    match inside.split_once('/') {
        None => Some((package, inside.strip_suffix(".rs")?)),
        Some((name, "main.rs")) => Some((package, name)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_with_a_root_are_binaries() {
        assert_eq!(
            target("mesh-agent/tests/deploy.rs"),
            Some(("mesh-agent", "deploy"))
        );
        assert_eq!(
            target("tests/tests/orchestrator/main.rs"),
            Some(("tests", "orchestrator"))
        );
        assert_eq!(target("tests/tests/support/mod.rs"), None);
        assert_eq!(target("mesh-agent/src/lib.rs"), None);
    }

    #[test]
    fn a_binary_that_nothing_runs_is_reported() {
        let source = |path: &str| Source {
            path: path.into(),
            text: String::new(),
        };
        let found = check(&[
            source("mesh-agent/tests/deploy.rs"),
            source("mesh-agent/tests/forgotten.rs"),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "mesh-agent/tests/forgotten.rs");
    }
}
