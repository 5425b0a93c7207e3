//! Prints answers as a table or as JSON, once or again and again.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::model::Protocol;

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// Columns
    #[default]
    Table,
    /// The agent's answer as JSON
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Repeat every SECONDS (default 1) until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
}

impl Watch {
    /// After how many seconds to repeat, if at all.
    pub(super) fn seconds(&self) -> Option<u32> {
        self.watch
    }
}

/// Prints once, or for ever; then failures are reported and do not end it.
pub(super) async fn repeat(
    watch: &Watch,
    mut show: impl AsyncFnMut() -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let Some(seconds) = watch.seconds() else {
        return show().await;
    };
    loop {
        clear()?;
        match show().await {
            Ok(_) => {}
            Err(error) if is_broken_pipe(&error) => return Err(error),
            // Keep watching: the agent may be restarting.
            Err(error) => eprintln!("meshctl: {error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    }
}

/// Clears the terminal, if the output is one.
pub(super) fn clear() -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        // Move the cursor home and clear to the end.
        write!(io::stdout(), "\x1b[H\x1b[J").context("cannot write to the terminal")?;
    }
    Ok(())
}

/// Prints an answer.
pub(super) fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => harmless(&table(value)),
        Format::Json => serde_json::to_string_pretty(value).context("cannot write the answer as JSON")?,
    };
    write_line(text.trim_end())
}

/// Prints lines, which may have parts of an answer.
pub(super) fn write_line(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")
        .and_then(|()| output.flush())
        .context("cannot write to standard output")
}

/// The text without characters that a terminal would obey: names are other machines' and users'.
pub(super) fn harmless(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' => '\n',
        character if character.is_control() => char::REPLACEMENT_CHARACTER,
        character => character,
    };
    text.chars().map(shown).collect()
}

/// Whether the reader of the output has gone.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(
            harmless("web\x1b[2J\u{9b}31m\r\n\tdb\u{7f}"),
            "web\u{fffd}[2J\u{fffd}31m\u{fffd}\n\u{fffd}db\u{fffd}"
        );
    }
}
