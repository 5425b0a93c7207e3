//! The agent where a data path is refused: it takes the next one, or says that none works and leaves nothing.
//! Each test has network and mounts of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::paths;

/// A folder for an agent's socket, gone at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mesh-fallback-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the test");
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/admin.sock")
    }

    /// An agent in network and mounts of its own, with a bpf file system, and no Docker. When it has ended,
    /// what is left of it is listed on standard output.
    fn agent(&self, arguments: &str, may_bpf: bool) -> Child {
        let agent = paths::program("mesh-agent");
        let shield = if may_bpf {
            String::new()
        } else {
            format!("{} without-bpf --", paths::program("mesh-testbed").display())
        };
        let folder = self.0.display();
        let script = format!(
            "ip link set lo up
             mount -t bpf bpf /sys/fs/bpf
             trap : TERM
             {shield} {} run --admin-socket {folder}/run/admin.sock --docker-socket {folder}/docker.sock \\
                 --metrics-listen off {arguments} &
             echo $! > {folder}/pid
             wait $!
             status=$?
             ls -d /sys/fs/bpf/mesh 2>/dev/null || true
             ip -o link | grep -o ' mesh[^:@]*' || true
             exit $status",
            agent.display()
        );
        Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux, and root")
    }

    /// What the agent says of itself, as soon as it answers; `None` if it ends instead.
    fn datapath(&self, agent: &mut Child) -> Option<serde_json::Value> {
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let output = Command::new(paths::program("meshctl"))
                .args(["datapath", "--format", "json", "--socket"])
                .arg(self.socket())
                .output()
                .expect("meshctl can be run");
            if output.status.success() {
                return Some(serde_json::from_slice(&output.stdout).expect("meshctl prints JSON"));
            }
            if agent.try_wait().expect("the agent is a child").is_some() {
                return None;
            }
            assert!(Instant::now() < limit, "the agent neither answers nor ends");
            sleep(Duration::from_millis(50));
        }
    }

    fn stop(&self) {
        let pid = fs::read_to_string(self.0.join("pid")).expect("the agent has started");
        let pid = pid.trim().parse().expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the agent runs");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The agent's words, and what it has left; it has ended.
fn end(agent: Child) -> (String, String, Option<i32>) {
    let Output {
        status,
        stdout,
        stderr,
    } = agent.wait_with_output().expect("the agent ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(stderr), text(stdout), status.code())
}

/// Asked after an agent has tried it: the kernel loads the module then.
fn kernel_has_ipvs() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

#[test]
fn without_the_bpf_system_call_ipvs_is_used_and_where_there_is_none_both_refusals_are_told() {
    let place = Place::new("auto");
    let mut agent = place.agent("", false);
    let found = place.datapath(&mut agent);
    if let Some(answer) = &found {
        let datapath = &answer["datapath"];
        assert_eq!(datapath["kind"], "ipvs", "{datapath}");
        assert_eq!(datapath["rung"], "ipvs", "{datapath}");
        assert_eq!(datapath["steps_down"], 1, "{datapath}");
        let reason = datapath["reason"].as_str().expect("a reason");
        assert!(reason.contains("Operation not permitted"), "{reason}");
        place.stop();
    }
    let (words, left, code) = end(agent);
    assert_eq!(left, "", "{words}");
    assert_eq!(found.is_some(), kernel_has_ipvs(), "{words}");
    if found.is_some() {
        assert_eq!(code, Some(0), "{words}");
    } else {
        assert_eq!(code, Some(1), "{words}");
        for part in [
            "no data path works on this node",
            "eBPF: ",
            "Operation not permitted",
            "IPVS: ",
            "module ip_vs",
        ] {
            assert!(words.contains(part), "'{part}' is missing in: {words}");
        }
    }
}

#[test]
fn ipvs_alone_runs_or_names_what_the_kernel_lacks() {
    let place = Place::new("ipvs");
    let mut agent = place.agent("--datapath ipvs", true);
    let found = place.datapath(&mut agent);
    if found.is_some() {
        place.stop();
    }
    let (words, left, code) = end(agent);
    assert_eq!(left, "", "{words}");
    assert_eq!(found.is_some(), kernel_has_ipvs(), "{words}");
    if found.is_none() {
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains("load the module ip_vs"), "{words}");
        assert!(!words.contains("eBPF: "), "it was not asked for: {words}");
    }
}

#[test]
fn ebpf_alone_does_not_fall_back() {
    let place = Place::new("ebpf");
    let mut agent = place.agent("--datapath ebpf", false);
    assert!(place.datapath(&mut agent).is_none());
    let (words, left, code) = end(agent);
    assert_eq!((left.as_str(), code), ("", Some(1)), "{words}");
    assert!(words.contains("Operation not permitted"), "{words}");
}

#[test]
fn where_everything_works_ebpf_is_used() {
    let place = Place::new("works");
    let mut agent = place.agent("", true);
    let answer = place.datapath(&mut agent);
    if answer.is_some() {
        place.stop();
    }
    let (words, left, code) = end(agent);
    let answer = answer.unwrap_or_else(|| panic!("the agent has ended: {words}"));
    assert_eq!(answer["datapath"]["kind"], "ebpf", "{answer}");
    assert_eq!((left.as_str(), code), ("", Some(0)), "{words}");
}
