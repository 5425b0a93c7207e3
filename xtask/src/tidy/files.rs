//! Rules about files: how long they are, how wide their comments are, which there are at the top level.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Rule, Scanned, Source, Violation, scan::Kind};

/// A file of more lines is an error; half of it is comfortable.
const MOST_LINES: usize = 600;

/// The width that rustfmt gives code, and leaves comments as they are.
const WIDTH: usize = 110;

/// Everything at the top level.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    ".lab",
    "ARCHITECTURE.md",
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "deploy",
    "mesh-agent",
    "mesh-ebpf",
    "mesh-orchestrator",
    "mesh-support",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "target",
    "tests",
    "xtask",
];

pub(super) fn length(source: &Source) -> Option<Violation> {
    let lines = source.text.lines().count();
    (lines > MOST_LINES).then(|| {
        source.violation(
            lines,
            Rule::Length,
            format!("{lines} lines; split the file: {MOST_LINES} are allowed, and 400 are comfortable"),
        )
    })
}

pub(super) fn width(file: &Scanned<'_>) -> Vec<Violation> {
    let lines: Vec<&str> = file.source.text.lines().collect();
    let comments = file.tokens.iter().filter(|token| token.kind == Kind::Comment);
    comments
        .flat_map(|comment| comment.line..comment.line + comment.text.lines().count())
        .filter_map(|line| {
            let width = lines.get(line - 1)?.chars().count();
            (width > WIDTH).then(|| {
                let message = format!("a comment of {width} columns; break it at {WIDTH}");
                file.source.violation(line, Rule::Width, message)
            })
        })
        .collect()
}

pub(super) fn top_level(root: &Path) -> Result<Vec<Violation>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("could not read {}", root.display()))? {
        let entry = entry.with_context(|| format!("could not read {}", root.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(undeclared(names))
}

fn undeclared(names: Vec<String>) -> Vec<Violation> {
    names
        .into_iter()
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
        .map(|path| Violation {
            path,
            line: 1,
            rule: Rule::TopLevel,
            message:
                "not declared at the top level; move it, delete it, or add it to xtask/src/tidy/files.rs"
                    .into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::scan;

    fn source(text: &str) -> Source {
        Source {
            path: "a.rs".into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_file_may_have_600_lines_and_no_more() {
        assert!(length(&source(&"\n".repeat(600))).is_none());
        assert!(length(&source(&"\n".repeat(601))).is_some());
    }

    #[test]
    fn a_wide_comment_is_reported_and_a_wide_string_is_not() {
        let text = format!(
            "// {0}\nlet a = \"{0}\";\n/* b\n {0}{0} */\n",
            "x".repeat(WIDTH - 3)
        );
        let source = source(&text);
        let file = Scanned {
            tokens: scan::tokens(&source.text),
            source: &source,
        };
        let lines: Vec<usize> = width(&file).iter().map(|violation| violation.line).collect();
        assert_eq!(lines, [4]);
    }

    #[test]
    fn a_stray_file_at_the_top_level_is_reported() {
        let found = undeclared(vec!["0".into(), "README.md".into()]);
        assert_eq!(
            found.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(),
            ["0"]
        );
    }
}
