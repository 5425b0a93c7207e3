//! Structured logs on standard error. Imports the configuration only.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, filter::LevelFilter, reload};

use crate::config::{LogFormat, RunOptions};

/// Starts logging as configured; the first call in a process wins.
pub fn start_logging(options: &RunOptions) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&options.log_level))
        .with_writer(std::io::stderr);
    let (started, set): (_, SetFilter) = match options.log_format {
        LogFormat::Text => {
            let builder = builder
                .with_target(false)
                .with_ansi(std::io::stderr().is_terminal())
                .with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was already started");
    } else {
        let _ = SET_FILTER.set(set);
    }
}

/// Changes the level of the log that [`start_logging`] has started.
pub(super) fn set_level(level: &str) {
    if let Some(Err(error)) = SET_FILTER.get().map(|set| set(filter(level))) {
        tracing::warn!(%error, "cannot change the log level");
    }
}

/// Replaces the filter of the log.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// The filter for a level that was validated when the settings were read.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(directives(level)).unwrap_or_else(|_| EnvFilter::new("info"))
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
