//! `cargo xtask tidy`: the rules of the house that compiler and lints do not know. Each rule is a file; what
//! it lets pass, with the reason, is in `exceptions`. Depends on `paths`, `programs` and the suite's list of
//! test binaries.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::paths;

mod circles;
mod exceptions;
mod files;
mod glossary;
mod imports;
mod modules;
mod safety;
mod scan;
mod shell;
mod started;
mod targets;

use self::{modules::Modules, scan::Token};

/// What to check.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// Report what is wrong in these files and folders only.
    paths: Vec<PathBuf>,
}

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// Modules import in one direction.
    Imports,
    /// Modules do not import each other.
    Circles,
    /// A file is of a size that can be read.
    Length,
    /// Comments are as wide as code.
    Width,
    /// The files at the top level are those that belong there.
    TopLevel,
    /// One thing has one name.
    Glossary,
    /// Every unsafe block has its proof.
    Safety,
    /// Every test binary is run by a command.
    Targets,
    /// Every program that is run is in the table of programs.
    Programs,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Imports => "imports",
            Self::Circles => "circles",
            Self::Length => "length",
            Self::Width => "width",
            Self::TopLevel => "top-level",
            Self::Glossary => "glossary",
            Self::Safety => "safety",
            Self::Targets => "targets",
            Self::Programs => "programs",
        })
    }
}

/// Something that a rule does not allow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    rule: Rule,
    /// What is wrong, and what to write instead.
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            rule,
            message,
        } = self;
        write!(formatter, "{path}:{line}: {rule}: {message}")
    }
}

/// A text file of the workspace.
#[derive(Clone, Debug)]
struct Source {
    /// Its path from the workspace's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn violation(&self, line: usize, rule: Rule, message: impl Into<String>) -> Violation {
        Violation {
            path: self.path.clone(),
            line,
            rule,
            message: message.into(),
        }
    }
}

/// A Rust file and its tokens.
struct Scanned<'a> {
    source: &'a Source,
    tokens: Vec<Token<'a>>,
}

/// What a rule finds in a file with this text.
#[cfg(test)]
fn found_in(text: &str, rule: impl Fn(&Scanned<'_>) -> Vec<Violation>) -> Vec<Violation> {
    let source = Source {
        path: "a.rs".into(),
        text: text.into(),
    };
    rule(&Scanned {
        tokens: scan::tokens(&source.text),
        source: &source,
    })
}

/// Checks the whole workspace and prints each violation.
///
/// # Errors
/// When there is a violation, or a file cannot be read.
pub fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let mut found = all()?;
    if !arguments.paths.is_empty() {
        let chosen = chosen(&paths::workspace(), &arguments.paths)?;
        found.retain(|violation| {
            chosen
                .iter()
                .any(|path| Path::new(&violation.path).starts_with(path))
        });
    }
    for violation in &found {
        println!("{violation}");
    }
    println!(
        "tidy: {} violations, in {:.1} s",
        found.len(),
        begin.elapsed().as_secs_f64(),
    );
    if !found.is_empty() {
        bail!("the tree is not tidy");
    }
    Ok(())
}

/// Every violation in the workspace, as a line.
///
/// # Errors
/// When a file cannot be read.
pub fn violations() -> Result<Vec<String>> {
    Ok(all()?.iter().map(ToString::to_string).collect())
}

fn all() -> Result<Vec<Violation>> {
    let root = paths::workspace();
    let mut found = check(&sources(&root)?);
    found.extend(files::top_level(&root)?);
    found.retain(|violation| !exceptions::allows(violation));
    found.sort();
    found.dedup();
    Ok(found)
}

fn check(sources: &[Source]) -> Vec<Violation> {
    let scanned: Vec<Scanned<'_>> = sources
        .iter()
        .filter(|source| source.is_rust())
        .map(|source| Scanned {
            source,
            tokens: scan::tokens(&source.text),
        })
        .collect();
    let modules = Modules::of(&scanned);
    let mut found = Vec::new();
    for file in &scanned {
        found.extend(files::length(file.source));
        found.extend(files::width(file));
        found.extend(safety::check(file));
        found.extend(started::check(file));
        found.extend(glossary::rust(file));
    }
    for source in sources.iter().filter(|source| !source.is_rust()) {
        if source.path.ends_with(".sh") || source.path == ".ci/run" {
            found.extend(started::script(source));
        }
        found.extend(glossary::prose(source));
    }
    found.extend(imports::check(&modules));
    found.extend(circles::check(&modules));
    found.extend(targets::check(sources));
    found
}

/// The paths a caller gave, from the workspace's root.
fn chosen(root: &Path, given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let root = fs::canonicalize(root).with_context(|| format!("could not find {}", root.display()))?;
    given
        .iter()
        .map(|path| {
            let found =
                fs::canonicalize(path).with_context(|| format!("could not find {}", path.display()))?;
            found
                .strip_prefix(&root)
                .map(Path::to_path_buf)
                .with_context(|| format!("{} is not in {}", path.display(), root.display()))
        })
        .collect()
}

/// What has none of our own text.
const SKIPPED: &[&str] = &[".git", ".lab", "target", "Cargo.lock"];

/// What is read.
const READ: &[&str] = &["rs", "md", "sh", "toml", "yml", "yaml", "service", "txt"];

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    read_folder(root, root, &mut found)?;
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn read_folder(root: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    let failed = || format!("could not read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if SKIPPED.contains(&name) {
            continue;
        }
        if path.is_dir() {
            read_folder(root, &path, found)?;
            continue;
        }
        let is_read = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| READ.contains(&extension));
        if is_read || name == "run" || name == "Dockerfile" {
            let text =
                fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path);
            found.push(Source {
                path: path.to_string_lossy().into_owned(),
                text,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_file_line_and_rule() {
        let source = Source {
            path: "a/b.rs".into(),
            text: String::new(),
        };
        assert_eq!(
            source.violation(3, Rule::Width, "too wide").to_string(),
            "a/b.rs:3: width: too wide"
        );
    }
}
