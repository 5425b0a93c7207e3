//! Waiting for a condition with a deadline. Depends on nothing else here.

use std::{
    sync::LazyLock,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How long to rest between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How many times as long as elsewhere a condition is waited for: `$MESH_LAB_PATIENCE`, for slow machines.
static PATIENCE: LazyLock<u32> = LazyLock::new(|| factor("MESH_LAB_PATIENCE"));

/// The variable of [`slack`].
pub const SLACK: &str = "MESH_LAB_SLACK";
static SLACK_FACTOR: LazyLock<u32> = LazyLock::new(|| factor(SLACK));

fn factor(variable: &str) -> u32 {
    let text = std::env::var(variable).unwrap_or_default();
    text.parse().unwrap_or(1).clamp(1, 1000)
}

/// How much slower than others this machine is expected to be, at least 1.
#[must_use]
pub fn patience() -> u32 {
    *PATIENCE
}

/// How many times as long as alone a condition may take, at least 1: `$MESH_LAB_SLACK`, where other tests
/// have the processors as well and a process may have to wait for its turn. The tests do no less for it.
#[must_use]
pub fn slack() -> u32 {
    *SLACK_FACTOR
}

/// Looks until `probe` succeeds and returns what it saw. Every error means "not yet". The timeout is
/// multiplied by [`patience`] and [`slack`].
///
/// # Errors
/// When the deadline passes: the last observation, and how long was waited for what.
pub fn wait_until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let timeout = timeout * patience() * slack();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() >= timeout => {
                return Err(error).with_context(|| {
                    format!(
                        "waited {:.1} s in vain for {what}; last seen",
                        begin.elapsed().as_secs_f64()
                    )
                });
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_what_the_probe_saw() -> Result<()> {
        let mut looks = 0;
        let seen = wait_until("the third look", Duration::from_secs(5), || {
            looks += 1;
            if looks < 3 {
                bail!("too early");
            }
            Ok(looks)
        })?;
        assert_eq!(seen, 3);
        Ok(())
    }

    #[test]
    fn failure_tells_what_was_seen_last() {
        let outcome: Result<()> = wait_until("rain", Duration::ZERO, || bail!("only sun"));
        let text = format!("{:#}", outcome.unwrap_err());
        assert!(text.contains("rain") && text.contains("only sun"), "{text}");
    }
}
