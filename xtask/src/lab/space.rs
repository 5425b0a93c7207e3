//! A set of namespaces held by one process: a node, the client, or the wire between them. Depends on
//! `process`, `state` and `wait`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    process::{Process, first_child, program_name},
    state::{SpaceRecord, State},
    wait::wait_until,
};
use crate::command::{command, run};

/// Where a node finds its own control group of the second version. The nodes share one hierarchy, so
/// each gets a part of it: what its agent attaches there sees this node's processes only.
pub const NODE_CGROUP: &str = "/run/cgroup2";

/// Where a node finds its engine's data: the same path on every node, so that one stack file fits all.
pub const NODE_DOCKER_ROOT: &str = "/run/docker-root";

/// The variable by which a space's holder is known should its lab be killed before it has written the
/// state.
const MARK: &str = "MESH_LAB";

/// Held while a space is started, so that an interruption never misses one; true once the labs of this
/// process are being taken down.
pub(super) static CLOSING: Mutex<bool> = Mutex::new(false);

/// Starts the namespaces of `name` and adds them to the state.
///
/// The pid namespace is what makes cleaning up certain: all that ever runs inside (engine, containerd,
/// its shims, containers, agents) ends when its first process does.
///
/// # Errors
/// When the kernel refuses, or the lab is being taken down.
pub fn start(state: &mut State, name: &str) -> Result<()> {
    let closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
    if *closing {
        bail!("the lab is being taken down");
    }
    let mut holder = command([
        "setsid",
        "unshare",
        "--fork",
        "--kill-child",
        "--net",
        "--mount",
        "--uts",
        "--pid",
    ]);
    // With SIGCHLD ignored, the kernel reaps orphans for the first process.
    holder.args([
        "--mount-proc",
        "--propagation",
        "private",
        "env",
        "--ignore-signal=CHLD",
        "sleep",
        "infinity",
    ]);
    let child = holder
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .env(MARK, mark(state))
        .spawn()
        .context("could not start `unshare` (package util-linux)")?;
    let pid = i32::try_from(child.id()).context("the pid is out of range")?;
    let record = wait_until(
        &format!("the namespaces of {name}"),
        Duration::from_secs(10),
        || {
            let init =
                first_child(pid).context("`unshare` has no child; does this kernel have all namespaces?")?;
            if program_name(init).as_deref() != Some("sleep") {
                bail!("the namespaces are not made yet");
            }
            Ok(SpaceRecord {
                name: name.to_owned(),
                holder: Process::of(pid)?,
                init: Process::of(init)?,
            })
        },
    )?;
    state.spaces.push(record);
    state.save()
}

/// Makes the inside of a node or client: its own `/run`, bpffs, host name and control group.
///
/// # Errors
/// When a mount is refused.
pub fn furnish(state: &State, name: &str) -> Result<()> {
    let cgroup = cgroup2()?.join("mesh-lab").join(&state.name).join(name);
    fs::create_dir_all(cgroup.join("init"))
        .with_context(|| format!("could not create {}", cgroup.display()))?;
    let data = state.data.join(name).join("docker");
    fs::create_dir_all(&data).with_context(|| format!("could not create {}", data.display()))?;
    // A systemd host shares its mounts between peers, and stack files rely on that. `/var/run` is a
    // link to `/run` on any system of the last ten years; where it is not, it becomes a second view.
    // No name server answers in the lab: dockerd's image look-ups should be refused, not time out.
    let script = format!(
        "mount --make-rshared / && mount -t tmpfs -o mode=755 mesh-lab /run && \
         if [ ! -L /var/run ]; then mount --bind /run /var/run; fi && \
         mkdir -p {NODE_CGROUP} {NODE_DOCKER_ROOT} && mount --bind \"$1\" {NODE_CGROUP} && \
         mount --bind \"$2\" {NODE_DOCKER_ROOT} && \
         echo nameserver 127.0.0.1 > /run/resolv.conf && \
         if [ -e /etc/resolv.conf ]; then mount --bind /run/resolv.conf /etc/resolv.conf; fi && \
         mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf && \
         hostname {name} && ip link set lo up"
    );
    run(enter(state.space(name)?, ["sh", "-euc", &script, "sh"])
        .arg(cgroup)
        .arg(data))?;
    Ok(())
}

/// A command inside all of a space's namespaces, outside its control group.
pub fn enter<'a>(space: &SpaceRecord, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let target = space.init.pid.to_string();
    let mut inside = command([
        "nsenter", "--target", &target, "--mount", "--uts", "--net", "--pid", "--wd=/",
    ]);
    inside.args(arguments);
    inside
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_CONFIG");
    inside
}

/// A command in a space's network namespace alone, with the host's pids and files.
pub fn enter_network<'a>(space: &SpaceRecord, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let target = space.init.pid.to_string();
    let mut inside = command(["nsenter", "--target", &target, "--net"]);
    inside.args(arguments);
    inside
}

/// A command inside all of a space's namespaces and its control group, as a process of the node is.
pub fn join<'a>(space: &SpaceRecord, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let script = format!("echo 0 > {NODE_CGROUP}/init/cgroup.procs; exec \"$@\"");
    let mut inside = enter(space, ["sh", "-euc", &script, "sh"]);
    inside.args(arguments);
    inside
}

/// Ends everything in the state's spaces, last started first.
///
/// # Errors
/// When a process does not end.
pub fn end_all(state: &State) -> Result<()> {
    for space in state.spaces.iter().rev() {
        space.init.end()?;
        space.holder.end()?;
    }
    for stray in marked(&mark(state)) {
        stray.end()?;
    }
    Ok(())
}

/// What marks the holders of this lab and of no other, not even of one of the same name.
fn mark(state: &State) -> String {
    format!("{}-{}-{}", state.name, state.owner.pid, state.owner.started)
}

/// The holders that were started for this lab and have not ended.
fn marked(mark: &str) -> Vec<Process> {
    let needle = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let process = Process::of(pid).ok()?;
            let variables = fs::read(entry.path().join("environ")).ok()?;
            variables
                .split(|byte| *byte == 0)
                .any(|variable| variable == needle.as_bytes())
                .then_some(process)
        })
        .collect()
}

/// Removes the lab's control groups from every hierarchy.
///
/// # Errors
/// When one is still in use after a while.
pub fn remove_cgroups(name: &str) -> Result<()> {
    for mount in cgroup_mounts()? {
        let lab = mount.path.join("mesh-lab").join(name);
        wait_until(
            &format!("the removal of {}", lab.display()),
            Duration::from_secs(10),
            || remove_cgroup(&lab),
        )?;
        // Fails while another lab is there, as it should.
        let _ = fs::remove_dir(mount.path.join("mesh-lab"));
    }
    Ok(())
}

fn remove_cgroup(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("could not remove {}", path.display()))
}

/// The mount point of the second version's hierarchy.
///
/// # Errors
/// When it is not mounted.
pub fn cgroup2() -> Result<PathBuf> {
    cgroup_mounts()?
        .into_iter()
        .find(|mount| mount.second_version)
        .map(|mount| mount.path)
        .context("cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

struct CgroupMount {
    path: PathBuf,
    second_version: bool,
}

fn cgroup_mounts() -> Result<Vec<CgroupMount>> {
    let table = fs::read_to_string("/proc/self/mounts").context("could not read the mount table")?;
    Ok(parse_cgroup_mounts(&table))
}

fn parse_cgroup_mounts(table: &str) -> Vec<CgroupMount> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let path = fields.nth(1)?;
            let kind = fields.next()?;
            matches!(kind, "cgroup" | "cgroup2").then(|| CgroupMount {
                path: path.into(),
                second_version: kind == "cgroup2",
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_in_a_hybrid_mount_table() {
        let mounts = parse_cgroup_mounts(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].path, Path::new("/sys/fs/cgroup/unified"));
        assert!(mounts[1].second_version && !mounts[0].second_version);
    }
}
