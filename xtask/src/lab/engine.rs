//! The nodes' Docker engines and the Swarm they form. Depends on `space`, `state` and `wait`.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    space::{NODE_DOCKER_ROOT, enter, join},
    state::{State, folder},
    wait::{patience, wait_until},
};
use crate::{
    command::{command, run, run_with_input},
    paths,
    programs::{self, Need},
};

/// The image the lab's services run.
pub const SERVER_IMAGE: &str = "mesh-lab/server:latest";

/// Where a containerd listens that dockerd has not started.
const CONTAINERD_SOCKET: &str = "/run/docker/containerd/containerd.sock";

/// Where a node's engine keeps its data, as the host sees it.
#[must_use]
pub fn data_root(state: &State, node: &str) -> PathBuf {
    state.data.join(node).join("docker")
}

/// Starts a node's dockerd and waits until it answers.
///
/// # Errors
/// When it cannot be started or does not answer; the end of its log is in the message.
pub fn start(state: &State, node: &str) -> Result<()> {
    let space = state.space(node)?;
    let folder_of_node = state.data.join(node);
    fs::create_dir_all(&folder_of_node)
        .with_context(|| format!("could not create {}", folder_of_node.display()))?;
    // Keeps the host's own configuration out.
    let configuration = folder_of_node.join("daemon.json");
    fs::write(&configuration, "{}")
        .with_context(|| format!("could not write {}", configuration.display()))?;
    let log_path = folder_of_node.join("dockerd.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("could not open {}", log_path.display()))?;
    let errors = log.try_clone().context("could not share the log")?;
    let cgroup = format!("/mesh-lab/{}/{node}/docker", state.name);
    let mut daemon = join(space, ["dockerd", "--data-root", NODE_DOCKER_ROOT]);
    daemon.arg("--config-file").arg(&configuration);
    daemon.args([
        "--exec-root",
        "/run/docker",
        "--pidfile",
        "/run/docker.pid",
        "-H",
        "unix:///run/docker.sock",
    ]);
    daemon.args([
        "--bip",
        "172.17.0.1/16",
        "--shutdown-timeout",
        "3",
        "--cgroup-parent",
        &cgroup,
    ]);
    if patience() > 1 {
        start_containerd(state, node)?;
        daemon.args(["--containerd", CONTAINERD_SOCKET]);
    }
    daemon.stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = daemon
        .spawn()
        .with_context(|| format!("could not start dockerd on {node}"))?;
    let outcome = wait_until(&format!("dockerd on {node}"), Duration::from_secs(60), || {
        run(&mut docker(
            state,
            node,
            ["version", "--format", "{{.Server.Version}}"],
        )?)
    });
    if let Err(error) = outcome {
        let status = child.try_wait().ok().flatten();
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return Err(error).with_context(|| {
            format!(
                "dockerd on {node} ({status:?}); end of its log:\n{}",
                tail.join("\n")
            )
        });
    }
    link_socket(state, node)
}

/// Starts a node's containerd, unless it runs. dockerd starts one by itself, and gives up when that takes
/// longer than 15 s, which it does on slow machines.
fn start_containerd(state: &State, node: &str) -> Result<()> {
    let space = state.space(node)?;
    let answers = || -> Result<()> {
        run(&mut enter(
            space,
            ["ctr", "--address", CONTAINERD_SOCKET, "version"],
        ))
        .map(drop)
    };
    if answers().is_ok() {
        return Ok(());
    }
    let folder_of_node = state.data.join(node);
    let configuration = folder_of_node.join("containerd.toml");
    // As dockerd writes it for its own.
    let text = format!(
        "version = 2\nroot = \"{NODE_DOCKER_ROOT}/containerd/daemon\"\nstate = \"/run/docker/containerd/daemon\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{CONTAINERD_SOCKET}\"\n"
    );
    fs::write(&configuration, text)
        .with_context(|| format!("could not write {}", configuration.display()))?;
    let log_path = folder_of_node.join("containerd.log");
    let log =
        fs::File::create(&log_path).with_context(|| format!("could not create {}", log_path.display()))?;
    let errors = log.try_clone().context("could not share the log")?;
    let mut containerd = join(space, ["containerd", "--config"]);
    containerd
        .arg(&configuration)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    containerd
        .spawn()
        .with_context(|| format!("could not start containerd on {node}"))?;
    wait_until(&format!("containerd on {node}"), Duration::from_secs(30), answers)
        .with_context(|| format!("its log is {}", log_path.display()))
}

/// Stops a node's dockerd with SIGTERM and waits until it is gone; its containers stop with it.
///
/// # Errors
/// When it does not end within 30 s.
pub fn stop(state: &State, node: &str) -> Result<()> {
    let script = "pid=$(cat /run/docker.pid); kill -TERM $pid; i=0; \
                  while [ -d /proc/$pid ]; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done";
    run(&mut enter(state.space(node)?, ["sh", "-euc", script]))
        .with_context(|| format!("could not stop dockerd on {node}"))?;
    Ok(())
}

/// The docker command-line tool on a node.
///
/// # Errors
/// When there is no such node.
pub fn docker<'a>(
    state: &State,
    node: &str,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<Command> {
    let mut docker = enter(state.space(node)?, ["docker", "-H", "unix:///run/docker.sock"]);
    docker.args(arguments);
    Ok(docker)
}

/// The socket of a node's engine as the host sees it.
#[must_use]
pub fn socket(state: &State, node: &str) -> PathBuf {
    folder(&state.name).join(format!("{node}.sock"))
}

/// Gives the host a way to the socket that the node's own `/run` hides.
fn link_socket(state: &State, node: &str) -> Result<()> {
    let link = socket(state, node);
    let target = format!("/proc/{}/root/run/docker.sock", state.space(node)?.init.pid);
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(target, &link).with_context(|| format!("could not create {}", link.display()))
}

/// Forms the Swarm: the first `managers` nodes manage.
///
/// # Errors
/// When a node cannot join.
pub fn form_swarm(state: &State, managers: usize) -> Result<()> {
    let nodes = state.nodes();
    let Some((first, others)) = nodes.split_first() else {
        bail!("a Swarm needs a node");
    };
    let address = |index: usize| {
        let host = u8::try_from(index + 1).unwrap_or(u8::MAX);
        state
            .topology
            .addresses(state.subnet, host)
            .pop()
            .unwrap_or_default()
    };
    run(&mut docker(
        state,
        first,
        ["swarm", "init", "--advertise-addr", &address(0)],
    )?)?;
    let token = |role| -> Result<String> {
        run(&mut docker(
            state,
            first,
            ["swarm", "join-token", "--quiet", role],
        )?)
    };
    let (manager, worker) = (token("manager")?, token("worker")?);
    let manager_at = format!("{}:2377", address(0));
    // Managers one after the other: each changes the quorum.
    let split = managers.saturating_sub(1).min(others.len());
    for (index, node) in others.iter().enumerate().take(split) {
        let arguments = [
            "swarm",
            "join",
            "--token",
            &manager,
            "--advertise-addr",
            &address(index + 1),
            &manager_at,
        ];
        run(&mut docker(state, node, arguments)?)?;
    }
    std::thread::scope(|scope| {
        let joins: Vec<_> = others
            .iter()
            .enumerate()
            .skip(split)
            .map(|(index, node)| {
                let arguments = [
                    "swarm",
                    "join",
                    "--token",
                    &worker,
                    "--advertise-addr",
                    &address(index + 1),
                    &manager_at,
                ];
                let join = docker(state, node, arguments);
                scope.spawn(move || run(&mut join?))
            })
            .collect();
        for join in joins {
            join.join()
                .map_err(|_| anyhow::anyhow!("a thread that joined a node panicked"))??;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    wait_until("all nodes to be ready", Duration::from_secs(60), || {
        let list = run(&mut docker(
            state,
            first,
            ["node", "ls", "--format", "{{.Hostname}} {{.Status}}"],
        )?)?;
        let ready = list.lines().filter(|line| line.ends_with(" Ready")).count();
        if ready != nodes.len() {
            bail!("{list}");
        }
        Ok(())
    })
}

/// Makes the services' image on a node, from busybox and the test server.
///
/// # Errors
/// When a program is missing or the engine refuses the image.
pub fn import_image(state: &State, node: &str) -> Result<()> {
    let archive = image_archive()?;
    let mut import = docker(
        state,
        node,
        ["import", "--change", "ENTRYPOINT [\"/bin/mesh-testbed\"]"],
    )?;
    import.args([
        "--change",
        "CMD [\"serve\"]",
        "--change",
        "ENV PATH=/bin",
        "-",
        SERVER_IMAGE,
    ]);
    run_with_input(&mut import, &archive)?;
    Ok(())
}

fn image_archive() -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let server = paths::program("mesh-testbed");
    for (from, to) in [
        (PathBuf::from("/usr/bin/busybox"), "bin/busybox"),
        (server, "bin/mesh-testbed"),
    ] {
        let from = if from.exists() {
            from
        } else {
            PathBuf::from("/bin").join(from.file_name().unwrap_or_default())
        };
        let bytes = fs::read(&from).with_context(|| {
            format!(
                "could not read {}; `cargo xtask setup` and `build` provide it",
                from.display()
            )
        })?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        archive
            .append_data(&mut header, to, bytes.as_slice())
            .context("could not write the image's archive")?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    archive
        .append_link(&mut header, "bin/sh", "busybox")
        .context("could not write the image's archive")?;
    archive
        .into_inner()
        .context("could not finish the image's archive")
}

/// Whether the tools that a lab needs are there.
///
/// # Errors
/// Names those that are missing.
pub fn check_tools() -> Result<()> {
    programs::check(&[Need::Lab]).context("the lab cannot be brought up")?;
    run(&mut command([
        "unshare", "--net", "--mount", "--uts", "--fork", "--pid", "true",
    ]))
    .context("this kernel or container does not allow new namespaces")?;
    Ok(())
}
