//! The one way this crate runs other programs: a failure is reported with the program's output. Depends only
//! on `paths`.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::paths;

/// A command from its program and arguments.
pub fn command<I, S>(arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut arguments = arguments.into_iter();
    let mut command = match arguments.next() {
        Some(program) => Command::new(program),
        // Spawning reports the empty name in its error.
        None => Command::new(""),
    };
    command.args(arguments);
    command
}

/// The command line as a person would type it, for messages.
#[must_use]
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs to the end without input and returns status and output, whatever the status is.
///
/// # Errors
/// When the program cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{}`", line(command)))
}

/// Runs to the end and returns its standard output, trimmed at the end.
///
/// # Errors
/// When it cannot be started or fails; its standard error is in the message.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    answer(command, &output)
}

/// The standard output of a command that has ended, trimmed at the end.
fn answer(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            line(command),
            output.status,
            output_text(output)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// A program's output, standard error first.
#[must_use]
pub fn output_text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let regular = String::from_utf8_lossy(&output.stdout);
    format!("{}\n{}", errors.trim(), regular.trim()).trim().to_owned()
}

/// Runs with `input` on its standard input.
///
/// # Errors
/// When it cannot be started, does not read its input, or fails.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .with_context(|| format!("could not wait for `{}`", line(command)))?;
    let text = answer(command, &output)?;
    written.with_context(|| format!("`{}` did not read its input", line(command)))?;
    Ok(text)
}

/// Runs with this terminal, so that every line is seen as it comes.
///
/// # Errors
/// When it cannot be started or fails.
pub fn stream(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a long command behind one line of progress; its output goes to a log file in the target
/// folder, whose end is shown when it fails.
///
/// # Errors
/// When it cannot be started or fails.
pub fn progress(title: &str, log_name: &str, command: &mut Command) -> Result<()> {
    let folder = paths::logs();
    std::fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let path = folder.join(format!("{log_name}.log"));
    let log = File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
    let errors = log
        .try_clone()
        .with_context(|| format!("could not share {}", path.display()))?;
    let begin = Instant::now();
    let bar = spinner(title);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let status = loop {
        if let Some(status) = child.try_wait().context("could not wait for a command")? {
            break status;
        }
        bar.set_message(last_line(&path));
        std::thread::sleep(Duration::from_millis(200));
    };
    bar.finish_and_clear();
    if !status.success() {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!(
            "`{}` failed ({status}); the end of {}:\n{}",
            line(command),
            path.display(),
            tail.join("\n")
        );
    }
    BARS.suspend(|| println!("  {title} ({:.1} s)", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// The lines of progress: several commands may run beside each other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One line of progress; silent where standard error is no terminal.
#[must_use]
pub fn spinner(title: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new_spinner().with_prefix(title.to_owned()));
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} [{elapsed}] {wide_msg:.dim}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn last_line(path: &std::path::Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .next_back()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether a program of this name is on the path.
#[must_use]
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// Sends to standard error what is printed from now on, and returns where standard output went.
///
/// # Errors
/// When the descriptors cannot be duplicated.
pub fn silence_standard_output() -> Result<OwnedFd> {
    let kept =
        nix::unistd::dup(std::io::stdout()).context("standard output cannot be kept for the figures")?;
    nix::unistd::dup2_stdout(std::io::stderr()).context("progress cannot go to standard error")?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_output() {
        let error = run(&mut command(["sh", "-c", "echo no such thing >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh -c") && error.contains("no such thing"),
            "{error}"
        );
    }

    #[test]
    fn output_is_trimmed_at_the_end() -> Result<()> {
        assert_eq!(run(&mut command(["echo", "hello"]))?, "hello");
        Ok(())
    }

    #[test]
    fn input_reaches_the_program() -> Result<()> {
        assert_eq!(run_with_input(&mut command(["cat"]), b"hello")?, "hello");
        Ok(())
    }
}
