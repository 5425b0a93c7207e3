//! A unit of systemd stands for a service: written by `meshctl systemd generate`, run by a real systemd.
//!
//! The manager is the one that systemd starts for a user: a process like any other, which runs units as the system's
//! does and needs no machine of its own.

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
    fixture::{Fixture, PATIENCE},
};

pub(crate) const STORIES: [Story; 1] = [("a_unit_of_systemd_stands_for_a_service", unit)];

/// The manager's folder on the node; units are in it, too.
const RUNTIME: &str = "/run/systemd-of-the-story";
/// The service's unit.
const UNIT: &str = "mesh-agent@web.service";

fn unit() -> Result<()> {
    ensure!(
        exists("systemd-analyze"),
        "systemd is not installed; run `cargo xtask setup`"
    );
    let fixture = Fixture::up("s-systemd", 1)?;
    fixture.start_agent("node1")?;
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
    let mut manager = Manager::start(&fixture)?;
    manager.write(&fixture)?;

    // The unit is on its way until the service is ready, and no unit after it begins before.
    manager.systemctl(&["start", "--no-block", "after.service"])?;
    let containers = wait_until("the service's containers", PATIENCE, || {
        let containers = fixture.containers("node1")?;
        ensure!(containers.len() == 2, "{containers:?}; {}", manager.log());
        Ok(containers)
    })
    .with_context(|| fixture.evidence())?;
    ensure!(manager.state(UNIT)? == "activating", "it was active too early");
    ensure!(
        manager.state("after.service")? == "inactive",
        "it began too early"
    );
    for container in &containers {
        fixture
            .lab
            .docker("node1", ["exec", container, "/bin/busybox", "touch", "/gate"])?;
    }
    manager.until(UNIT, "active")?;
    manager.until("after.service", "active")?;
    ensure!(replicas(&fixture)? == "2/2", "{}", replicas(&fixture)?);

    // Its end, by ExecStop as by a signal, pauses the service.
    manager.systemctl(&["stop", UNIT])?;
    ensure!(manager.state(UNIT)? == "inactive", "it did not end well");
    ensure!(
        manager.state("after.service")? == "inactive",
        "what requires it goes on"
    );
    ensure!(replicas(&fixture)? == "0/0", "{}", replicas(&fixture)?);
    ensure!(fixture.containers("node1")?.is_empty(), "containers are left");

    // Told to end before the service was ready, it does.
    manager.systemctl(&["start", "--no-block", UNIT])?;
    manager.until(UNIT, "activating")?;
    wait_until("the service to be resumed", PATIENCE, || {
        ensure!(replicas(&fixture)?.ends_with("/2"));
        Ok(())
    })?;
    manager.systemctl(&["stop", UNIT])?;
    ensure!(replicas(&fixture)? == "0/0", "{}", replicas(&fixture)?);

    // A service that does not exist is a failure.
    let nothing = "mesh-agent@nothing.service";
    ensure!(
        manager.systemctl(&["start", nothing]).is_err(),
        "a unit of no service started"
    );
    let status = manager.systemctl(&["show", "--property", "ExecMainStatus", "--value", nothing])?;
    ensure!(status == "1", "it ended with {status}");
    manager.systemctl(&["stop", nothing])?;
    manager.end()?;
    fixture.lab.down()
}

fn replicas(fixture: &Fixture) -> Result<String> {
    let words = [
        "service",
        "ls",
        "--filter",
        "name=web",
        "--format",
        "{{.Replicas}}",
    ];
    fixture.lab.meshctl("node1", &words)
}

/// A systemd on the node.
struct Manager<'a> {
    fixture: &'a Fixture,
    process: Child,
}

impl<'a> Manager<'a> {
    fn start(fixture: &'a Fixture) -> Result<Self> {
        // It asks whether the machine was booted with systemd by looking for that folder.
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

    /// Writes the units: what meshctl says, and one that is ordered after it. systemd must have nothing to say to
    /// them.
    fn write(&self, fixture: &Fixture) -> Result<()> {
        let meshctl = paths::program("meshctl");
        let meshctl = meshctl.to_str().context("the path is not UTF-8")?;
        let generate = |more: &str| -> Result<String> {
            let words = [
                "systemd",
                "generate",
                "--meshctl",
                meshctl,
                "--timeout",
                "60",
                more,
            ];
            fixture.lab.meshctl("node1", &words)
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
            let words = ["env", &unit_path, "systemd-analyze", "verify", "--man=no", name];
            let verified = output(&mut fixture.lab.command("node1", words)?)?;
            ensure!(
                verified.status.success() && !output_text(&verified).contains(name),
                "{}",
                output_text(&verified)
            );
        }
        self.systemctl(&["daemon-reload"]).map(drop)
    }

    fn systemctl(&self, words: &[&str]) -> Result<String> {
        let variable = format!("XDG_RUNTIME_DIR={RUNTIME}");
        let all = ["env", &variable, "systemctl", "--user"];
        let words = all.into_iter().chain(words.iter().copied());
        let mut command = self.fixture.lab.command("node1", words)?;
        run(command.env_remove("DBUS_SESSION_BUS_ADDRESS"))
    }

    /// `active`, `activating`, `inactive`, `failed`.
    fn state(&self, unit: &str) -> Result<String> {
        self.systemctl(&["show", "--property", "ActiveState", "--value", unit])
    }

    fn until(&self, unit: &str, wanted: &str) -> Result<()> {
        wait_until(&format!("{unit} to be {wanted}"), PATIENCE, || {
            let state = self.state(unit)?;
            if state != wanted {
                bail!("it is {state}; {}", self.log());
            }
            Ok(())
        })
    }

    /// What it and its units have said.
    fn log(&self) -> String {
        let words = ["tail", "-n", "30", &format!("{RUNTIME}/log")];
        self.fixture.lab.run("node1", words).unwrap_or_default()
    }

    fn end(&mut self) -> Result<()> {
        self.systemctl(&["exit"])?;
        self.process.wait().context("systemd did not end")?;
        Ok(())
    }
}

/// Where the manager's program is: in no folder for commands.
fn program() -> Result<&'static str> {
    ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .context("systemd is not installed; run `cargo xtask setup`")
}
