//! Structured logs on standard error. Imports the configuration only.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::config::{LogFormat, RunOptions};

/// Starts logging as configured; the first call in a process wins.
pub fn start_logging(options: &RunOptions) {
    // Validated when the command line was read.
    let filter =
        EnvFilter::try_new(directives(&options.log_level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match options.log_format {
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was already started");
    }
}

/// A plain level applies to the mesh only: libraries' finer levels are noisy, and may contain whole answers
/// of the engine.
fn directives(level: &str) -> String {
    match level.parse::<LevelFilter>() {
        Ok(plain) => format!("{},mesh_agent={plain}", plain.min(LevelFilter::WARN)),
        Err(_) => level.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_level_applies_to_the_mesh_and_a_list_is_used_as_it_is() {
        assert_eq!(directives("debug"), "warn,mesh_agent=debug");
        assert_eq!(directives("error"), "error,mesh_agent=error");
        assert_eq!(directives("info,hyper=trace"), "info,hyper=trace");
    }
}
