//! Phases of a long command: each is timed, several may run beside each other, and all are listed with their
//! times and the test runners' closing lines at the end, also when one has failed. Depends on `command`.
//!
//! The report ends with what failed and why: where a log is cut, its end is what is kept.

mod failures;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::failures::Excerpt;
use crate::command::line;

/// What has been done so far.
#[derive(Debug, Default)]
pub struct Phases {
    done: Vec<Done>,
}

#[derive(Debug)]
struct Done {
    name: &'static str,
    took: Duration,
    error: Option<anyhow::Error>,
    closing: Vec<String>,
    excerpt: Excerpt,
}

/// What a phase does.
type Work<'a> = Box<dyn FnOnce(&Output) -> Result<()> + Send + 'a>;

/// A phase to be run beside others.
pub struct Phase<'a> {
    name: &'static str,
    gives_way: bool,
    work: Work<'a>,
}

impl<'a> Phase<'a> {
    /// A phase of this name.
    pub fn new(name: &'static str, work: impl FnOnce(&Output) -> Result<()> + Send + 'a) -> Self {
        Self {
            name,
            gives_way: false,
            work: Box::new(work),
        }
    }

    /// The commands of this phase run when no other needs the processors.
    #[must_use]
    pub fn giving_way(self) -> Self {
        Self {
            gives_way: true,
            ..self
        }
    }
}

/// Where a phase's output goes: to standard output, with the phase's name before each line where others run
/// beside it.
#[derive(Debug)]
pub struct Output {
    prefix: Option<&'static str>,
    gives_way: bool,
    kept: Mutex<Kept>,
}

/// What the report shows of a phase's output.
#[derive(Debug, Default)]
struct Kept {
    closing: Vec<String>,
    excerpt: Excerpt,
}

impl Output {
    fn new(prefix: Option<&'static str>, gives_way: bool) -> Self {
        Self {
            prefix,
            gives_way,
            kept: Mutex::default(),
        }
    }

    /// Shows one line.
    pub fn line(&self, line: &str) {
        match self.prefix {
            Some(name) => println!("{name:>10} | {line}"),
            None => println!("{line}"),
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.excerpt.line(line);
        if line.starts_with("test result:") {
            kept.closing.push(line.to_owned());
        }
    }

    /// Runs a command and shows its lines as they come.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn stream(&self, command: &mut Command) -> Result<()> {
        let mut niced;
        let command = match self.gives_way {
            true => {
                niced = giving_way(command);
                &mut niced
            }
            false => command,
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start `{}`", line(command)))?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(|| self.lines(output));
            scope.spawn(|| self.lines(errors));
        });
        let status = child
            .wait()
            .with_context(|| format!("could not wait for `{}`", line(command)))?;
        if !status.success() {
            bail!("`{}` failed ({status})", line(command));
        }
        Ok(())
    }

    /// Shows what is read, line by line.
    pub fn lines(&self, from: Option<impl Read>) {
        let Some(from) = from else { return };
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut bytes) {
            self.line(String::from_utf8_lossy(&bytes).trim_end());
            bytes.clear();
        }
    }
}

impl Phases {
    /// Runs a phase by itself.
    ///
    /// # Errors
    /// When the phase fails.
    pub fn run_alone(&mut self, name: &'static str, work: impl FnOnce(&Output) -> Result<()>) -> Result<()> {
        let done = timed(name, Output::new(None, false), work);
        self.note(vec![done])
    }

    /// Runs phases beside each other, to the end even where one fails.
    ///
    /// # Errors
    /// When a phase fails.
    pub fn run_together(&mut self, phases: Vec<Phase<'_>>) -> Result<()> {
        let alone = phases.len() == 1;
        let done = thread::scope(|scope| {
            let threads: Vec<_> = phases
                .into_iter()
                .map(
                    |Phase {
                         name,
                         gives_way,
                         work,
                     }| {
                        let output = Output::new((!alone).then_some(name), gives_way && !alone);
                        (name, scope.spawn(move || timed(name, output, work)))
                    },
                )
                .collect();
            let join = |(name, thread): (&'static str, thread::ScopedJoinHandle<'_, Done>)| {
                thread.join().unwrap_or_else(|_| Done {
                    name,
                    took: Duration::ZERO,
                    error: Some(anyhow::anyhow!("its thread panicked")),
                    closing: Vec::new(),
                    excerpt: Excerpt::default(),
                })
            };
            threads.into_iter().map(join).collect()
        });
        self.note(done)
    }

    fn note(&mut self, done: Vec<Done>) -> Result<()> {
        let failed: Vec<&str> = done
            .iter()
            .filter(|done| done.error.is_some())
            .map(|done| done.name)
            .collect();
        let outcome = match failed.as_slice() {
            [] => Ok(()),
            names => Err(anyhow::anyhow!("failed: {}", names.join(", "))),
        };
        self.done.extend(done);
        outcome
    }

    /// Lists the phases with their times and how the test runners closed; at the end, the failed phases with
    /// the failed tests and the ends of their messages.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        for done in &self.done {
            let Done {
                name,
                took,
                error,
                closing,
                excerpt: _,
            } = done;
            let outcome = if error.is_some() { "FAILED" } else { "passed" };
            text += &format!("{:>8.1} s  {outcome}  {name}\n", took.as_secs_f64());
            for line in closing {
                text += &format!("{:>12}{line}\n", "");
            }
        }
        for Done {
            name, error, excerpt, ..
        } in &self.done
        {
            if let Some(error) = error {
                text += &format!("\n{name} failed: {error:#}\n{}", excerpt.report());
            }
        }
        text
    }
}

/// The same command at a low priority.
fn giving_way(command: &Command) -> Command {
    let mut niced = crate::command::command(["nice", "--adjustment=19"]);
    niced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => niced.env(name, value),
            None => niced.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        niced.current_dir(folder);
    }
    niced
}

fn timed(name: &'static str, output: Output, work: impl FnOnce(&Output) -> Result<()>) -> Done {
    println!("== {name}");
    let begin = Instant::now();
    let outcome = work(&output);
    let took = begin.elapsed();
    let text = if outcome.is_ok() { "passed" } else { "FAILED" };
    println!("== {name}: {text} in {:.1} s", took.as_secs_f64());
    let kept = output.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    Done {
        name,
        took,
        error: outcome.err(),
        closing: kept.closing,
        excerpt: kept.excerpt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn every_phase_is_reported_with_closing_lines_also_when_one_fails() {
        let mut phases = Phases::default();
        let work =
            |script: &'static str| move |output: &Output| output.stream(&mut command(["sh", "-c", script]));
        assert!(
            phases
                .run_alone("first", work("echo a; echo 'test result: ok. 1 passed'"))
                .is_ok()
        );
        let outcome = phases.run_together(vec![
            Phase::new("second", work("echo b >&2; exit 3")),
            Phase::new("third", work("test $(nice) -gt 0")).giving_way(),
        ]);
        assert_eq!(outcome.unwrap_err().to_string(), "failed: second");
        let report = phases.report();
        for expected in [
            "passed  first",
            "test result: ok. 1 passed",
            "FAILED  second",
            "passed  third",
        ] {
            assert!(report.contains(expected), "{expected}: {report}");
        }
        let (_, last) = report.rsplit_once("\n\n").unwrap();
        assert!(
            last.starts_with("second failed:") && last.contains("exit status: 3") && last.ends_with("  b\n"),
            "{report}"
        );
    }

    #[test]
    fn the_report_ends_with_the_failed_tests_and_why_they_failed() {
        let mut phases = Phases::default();
        let script = "printf '%s\\n' 'failures:' '' '---- a::story ----' 'logs' '' 'Caused by:' '    the reason' '' \
                      'Stack backtrace:' '   0: main' '' 'failures:' '    a::story' '' 'test result: FAILED. 1 failed'; exit 1";
        let failed = phases.run_alone("stories", |output| {
            output.stream(&mut command(["sh", "-c", script]))
        });
        assert!(failed.is_err());
        let report = phases.report();
        assert!(
            report.ends_with("\n  a::story\n    Caused by:\n        the reason\n"),
            "{report}"
        );
    }
}
