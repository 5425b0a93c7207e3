//! The mesh agent on the lab's nodes. Depends on `space` and `wait`.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::PoisonError,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Lab,
    space::{NODE_CGROUP, enter, join},
    wait::wait_until,
};
use crate::{
    command::{output, output_text, run},
    paths,
};

/// The file with the agent's pid as its node counts.
const PID_FILE: &str = "/run/mesh-agent.pid";

/// An agent's arguments by default: the lab's wire supports native XDP.
pub const DEFAULT_ARGUMENTS: &[&str] = &["--xdp", "native"];

impl Lab {
    /// Starts the agent on a node and waits until it answers `meshctl status`.
    ///
    /// # Errors
    /// When it ends or does not answer; the end of its log is in the message.
    pub fn start_agent(&self, node: &str, arguments: &[&str]) -> Result<()> {
        self.start_other_agent(&paths::program("mesh-agent"), node, arguments)
    }

    /// The same with another program, such as that of an earlier release.
    ///
    /// # Errors
    /// As [`Self::start_agent`].
    pub fn start_other_agent(&self, program: &Path, node: &str, arguments: &[&str]) -> Result<()> {
        self.spawn(program, node, arguments)?;
        wait_until(&format!("the agent on {node}"), Duration::from_secs(20), || {
            self.meshctl(node, &["status"]).map(drop)
        })
        .with_context(|| {
            format!(
                "the agent on {node}; end of its log:\n{}",
                self.agent_log_tail(node, 20)
            )
        })
    }

    /// Starts the agent on every node, managers first.
    ///
    /// # Errors
    /// The first one's that fails.
    pub fn start_agents(&self, arguments: &[&str]) -> Result<()> {
        self.on_each_node(|node| self.start_agent(node, arguments))
    }

    /// Starts the agent on a node and does not wait.
    ///
    /// # Errors
    /// When it cannot be started, or one runs there already.
    pub fn spawn_agent(&self, node: &str, arguments: &[&str]) -> Result<()> {
        self.spawn(&paths::program("mesh-agent"), node, arguments)
    }

    fn spawn(&self, program: &Path, node: &str, arguments: &[&str]) -> Result<()> {
        if self.agent_is_running(node)? {
            bail!("an agent runs on {node} already");
        }
        let program = program.to_str().context("the program's path is not UTF-8")?;
        let path = self.agent_log(node);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("could not open {}", path.display()))?;
        let errors = log.try_clone().context("could not share the agent's log")?;
        let script = format!("echo $$ > {PID_FILE}; exec \"$@\"");
        let mut agent = join(
            self.state.space(node)?,
            ["sh", "-euc", &script, "sh", program, "run"],
        );
        if !arguments.contains(&"--log-level") {
            // To find out why a story failed.
            agent.args(["--log-level", "debug"]);
        }
        if !arguments.contains(&"--cgroup") {
            agent.args(["--cgroup", NODE_CGROUP]);
        }
        agent
            .args(arguments)
            // A story that stops an agent means to take its data path away, unless it says otherwise.
            .env("MESH_ON_STOP", "detach")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let child = agent
            .spawn()
            .with_context(|| format!("could not start the agent on {node}"))?;
        let old = self
            .agents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.to_owned(), child);
        if let Some(mut old) = old {
            // It has ended: nothing runs under its pid any more.
            let _ = old.wait();
        }
        Ok(())
    }

    /// Whether an agent runs on a node.
    ///
    /// # Errors
    /// When the node cannot be entered.
    pub fn agent_is_running(&self, node: &str) -> Result<bool> {
        let script = format!("test -s {PID_FILE} && kill -0 $(cat {PID_FILE}) 2>/dev/null");
        let output = output(&mut enter(self.state.space(node)?, ["sh", "-c", &script]))?;
        Ok(output.status.success())
    }

    /// Stops the agent on a node with SIGTERM and waits for its end; its exit status where this process
    /// started it.
    ///
    /// # Errors
    /// When it does not end within 15 s.
    pub fn stop_agent(&self, node: &str) -> Result<Option<ExitStatus>> {
        self.end_agent(node, "TERM")
    }

    /// Ends the agent on a node with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        self.end_agent(node, "KILL").map(drop)
    }

    /// Stops the agents of all nodes where one runs.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop_agents(&self) -> Result<()> {
        self.on_each_node(|node| {
            if self.agent_is_running(node)? {
                self.stop_agent(node).map(drop)
            } else {
                Ok(())
            }
        })
    }

    fn end_agent(&self, node: &str, signal: &str) -> Result<Option<ExitStatus>> {
        let script = format!("kill -{signal} $(cat {PID_FILE})");
        run(&mut enter(self.state.space(node)?, ["sh", "-euc", &script]))
            .with_context(|| format!("could not send SIG{signal} to the agent on {node}"))?;
        let mut child = self
            .agents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
        let status = wait_until(
            &format!("the end of the agent on {node}"),
            Duration::from_secs(15),
            || {
                if let Some(child) = &mut child {
                    return match child.try_wait().context("could not wait for the agent")? {
                        Some(status) => Ok(Some(status)),
                        None => bail!("it still runs"),
                    };
                }
                if self.agent_is_running(node)? {
                    bail!("it still runs");
                }
                Ok(None)
            },
        )
        .with_context(|| format!("end of its log:\n{}", self.agent_log_tail(node, 20)))?;
        run(&mut enter(self.state.space(node)?, ["rm", "-f", PID_FILE]))?;
        Ok(status)
    }

    /// Runs `meshctl` on a node and returns its output.
    ///
    /// # Errors
    /// When it fails; with its output.
    pub fn meshctl(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let program = paths::program("meshctl");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        let mut meshctl = enter(self.state.space(node)?, [program]);
        meshctl.args(arguments);
        run(&mut meshctl)
    }

    /// The metrics of the agent on a node, as text.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn metrics(&self, node: &str) -> Result<String> {
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        let arguments = [program, "get", "http://127.0.0.1:9469/metrics", "--raw"];
        let output = output(&mut enter(self.state.space(node)?, arguments))?;
        if !output.status.success() {
            bail!("could not read the metrics of {node}: {}", output_text(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where the agent of a node writes its log.
    #[must_use]
    pub fn agent_log(&self, node: &str) -> PathBuf {
        self.state.data.join(node).join("mesh-agent.log")
    }

    /// The last lines of a node's agent's log.
    #[must_use]
    pub fn agent_log_tail(&self, node: &str, lines: usize) -> String {
        let text = fs::read_to_string(self.agent_log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(lines).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// The sum of a metric's series whose labels hold all the given texts, e.g. `reason="fragment"`.
#[must_use]
pub fn metric_sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_matching_series() {
        let text = "# HELP m_total x\nm_total{hook=\"xdp\",reason=\"a\"} 2\nm_total{hook=\"tc\",reason=\"a\"} 3\n\
                    m_total{hook=\"tc\",reason=\"b\"} 5\nm_total_more 7\n";
        assert_eq!(metric_sum(text, "m_total", &[]), 10.0);
        assert_eq!(metric_sum(text, "m_total", &["reason=\"a\""]), 5.0);
    }
}
