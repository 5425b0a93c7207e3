//! A systemd unit that represents a service: written by `meshctl systemd generate`, run by a real systemd.
//!
//! The manager is a user's one: an ordinary process that runs units as the system's manager does, and needs
//! no machine of its own.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{
    command::{exists, output, output_text, run},
    lab::{engine::SERVER_IMAGE, wait_until},
    paths,
};

use crate::{
    Story,
    fixture::{Fixture, PATIENCE, on_one_node},
};

pub(crate) const STORIES: [Story; 1] = [("a_systemd_unit_starts_and_stops_a_service", || {
    on_one_node("s-systemd", unit)
})];

/// The manager's folder on the node; units are in it, too.
const RUNTIME: &str = "/run/systemd-of-the-story";
/// The service's unit.
const UNIT: &str = "mesh-agent@web.service";

fn unit(fixture: &Fixture) -> Result<()> {
    ensure!(
        exists("systemd-analyze"),
        "systemd is not installed; run `cargo xtask setup`"
    );
    let script = "trap 'exit 0' TERM; while true; do busybox sleep 0.1; done";
    fixture.lab.meshctl(
        "node1",
        &[
            "service",
            "create",
            "--detach",
            "--name",
            "web",
            "--replicas",
            "2",
            "--health-cmd",
            "busybox test -e /gate",
            "--health-interval",
            "200ms",
            // The gate opens late on a slow machine.
            "--health-start-period",
            "1m",
            "--stop-grace-period",
            "2s",
            "--update-monitor",
            "100ms",
            "--entrypoint",
            "/bin/busybox sh -c",
            SERVER_IMAGE,
            script,
        ],
    )?;
    fixture
        .lab
        .meshctl("node1", &["service", "pause", "--quiet", "web"])?;
    let mut manager = Manager::start(fixture)?;
    manager.write(fixture)?;

    // The unit is activating until the service is ready, and units after it wait.
    manager.systemctl(&["start", "--no-block", "after.service"])?;
    let containers = wait_until("the service's containers", PATIENCE, || {
        let containers = fixture.containers("node1")?;
        ensure!(containers.len() == 2, "{containers:?}; {}", manager.log());
        Ok(containers)
    })?;
    ensure!(manager.state(UNIT)? == "activating", "it was active too early");
    ensure!(
        manager.state("after.service")? == "inactive",
        "it started too early"
    );
    for container in &containers {
        fixture
            .lab
            .docker("node1", ["exec", container, "/bin/busybox", "touch", "/gate"])?;
    }
    manager.until(UNIT, "active")?;
    manager.until("after.service", "active")?;
    ensure!(replicas(fixture)? == "2/2", "{}", replicas(fixture)?);

    // Stopping the unit, by ExecStop or by a signal, pauses the service.
    manager.systemctl(&["stop", UNIT])?;
    ensure!(manager.state(UNIT)? == "inactive", "it failed");
    ensure!(
        manager.state("after.service")? == "inactive",
        "a unit that requires it still runs"
    );
    ensure!(replicas(fixture)? == "0/0", "{}", replicas(fixture)?);
    ensure!(fixture.containers("node1")?.is_empty(), "containers are left");

    // It can be stopped before the service is ready.
    manager.systemctl(&["start", "--no-block", UNIT])?;
    manager.until(UNIT, "activating")?;
    wait_until("the service to be resumed", PATIENCE, || {
        ensure!(replicas(fixture)?.ends_with("/2"));
        Ok(())
    })?;
    manager.systemctl(&["stop", UNIT])?;
    ensure!(replicas(fixture)? == "0/0", "{}", replicas(fixture)?);

    // A service that does not exist is a failure.
    let nothing = "mesh-agent@nothing.service";
    ensure!(
        manager.systemctl(&["start", nothing]).is_err(),
        "a unit of no service started"
    );
    let status = manager.systemctl(&["show", "--property", "ExecMainStatus", "--value", nothing])?;
    ensure!(status == "1", "it ended with {status}");
    manager.systemctl(&["stop", nothing])?;
    manager.end()
}

fn replicas(fixture: &Fixture) -> Result<String> {
    let arguments = [
        "service",
        "ls",
        "--filter",
        "name=web",
        "--format",
        "{{.Replicas}}",
    ];
    fixture.lab.meshctl("node1", &arguments)
}

/// A systemd on the node.
struct Manager<'a> {
    fixture: &'a Fixture,
    process: Child,
}

impl<'a> Manager<'a> {
    fn start(fixture: &'a Fixture) -> Result<Self> {
        // By this folder it checks whether the machine was booted with systemd.
        let script = format!(
            "mkdir -p /run/systemd/system {RUNTIME}/systemd/user; export XDG_RUNTIME_DIR={RUNTIME} HOME={RUNTIME}; \
             exec {} --user --log-target=console --unit=basic.target > {RUNTIME}/log 2>&1",
            program()?
        );
        let process = fixture
            .lab
            .command("node1", ["sh", "-c", &script])?
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .spawn()
            .context("could not start systemd")?;
        let manager = Self { fixture, process };
        wait_until("systemd", Duration::from_secs(20), || {
            manager.systemctl(&["list-units"]).map(drop)
        })
        .with_context(|| manager.log())?;
        Ok(manager)
    }

    /// Writes the units that meshctl generates, and one that is ordered after them. systemd must accept them
    /// without a warning.
    fn write(&self, fixture: &Fixture) -> Result<()> {
        let meshctl = paths::program("meshctl");
        let meshctl = meshctl.to_str().context("the path is not UTF-8")?;
        let generate = |more: &str| -> Result<String> {
            let arguments = [
                "systemd",
                "generate",
                "--meshctl",
                meshctl,
                "--timeout",
                "60",
                more,
            ];
            fixture.lab.meshctl("node1", &arguments)
        };
        let after = format!(
            "[Unit]\nDescription=After the service\nRequires={UNIT}\nAfter={UNIT}\n[Service]\nExecStart=sleep infinity\n"
        );
        for (name, text) in [
            (UNIT, generate("web")?),
            ("mesh-agent@.service", generate("--template")?),
            ("after.service", after),
        ] {
            let path = format!("{RUNTIME}/systemd/user/{name}");
            let write = "cat > \"$1\" <<'END'\n".to_owned() + &text + "\nEND";
            fixture.lab.run("node1", ["sh", "-euc", &write, "sh", &path])?;
        }
        for name in [UNIT, "mesh-agent@other.service"] {
            let unit_path = format!("SYSTEMD_UNIT_PATH={RUNTIME}/systemd/user:");
            let arguments = ["env", &unit_path, "systemd-analyze", "verify", "--man=no", name];
            let verified = output(&mut fixture.lab.command("node1", arguments)?)?;
            ensure!(
                verified.status.success() && !output_text(&verified).contains(name),
                "{}",
                output_text(&verified)
            );
        }
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        let variable = format!("XDG_RUNTIME_DIR={RUNTIME}");
        let all = ["env", &variable, "systemctl", "--user"];
        let arguments = all.into_iter().chain(arguments.iter().copied());
        let mut command = self.fixture.lab.command("node1", arguments)?;
        run(command.env_remove("DBUS_SESSION_BUS_ADDRESS"))
    }

    /// `active`, `activating`, `inactive`, `failed`.
    fn state(&self, unit: &str) -> Result<String> {
        self.systemctl(&["show", "--property", "ActiveState", "--value", unit])
    }

    fn until(&self, unit: &str, expected: &str) -> Result<()> {
        wait_until(&format!("{unit} to be {expected}"), PATIENCE, || {
            let state = self.state(unit)?;
            if state != expected {
                bail!("it is {state}; {}", self.log());
            }
            Ok(())
        })
    }

    /// The end of its log and its units'.
    fn log(&self) -> String {
        let arguments = ["tail", "-n", "30", &format!("{RUNTIME}/log")];
        self.fixture.lab.run("node1", arguments).unwrap_or_default()
    }

    fn end(&mut self) -> Result<()> {
        self.systemctl(&["exit"])?;
        self.process.wait().context("systemd did not end")?;
        Ok(())
    }
}

/// The manager's program, which is not in the PATH.
fn program() -> Result<&'static str> {
    ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .context("systemd is not installed; run `cargo xtask setup`")
}
