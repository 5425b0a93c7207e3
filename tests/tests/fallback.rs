//! The agent where the kernel refuses a data path: it uses the next one, or reports that none works and
//! leaves nothing behind. Each test has network and mounts of its own.

use std::{
    fs,
    os::unix::net::UnixDatagram,
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

/// How long an agent may take to answer or to end: on an emulated processor, the kernel verifies its programs
/// for a minute.
const LIMIT: Duration = Duration::from_secs(240);

/// A folder for an agent's socket, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mesh-fallback-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the test");
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/admin.sock")
    }

    /// Starts an agent in network and mounts of its own, with a bpf file system, and no Docker. After its
    /// end, what it left behind is listed on standard output.
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
                 --metrics-listen off --on-stop detach {arguments} &
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
            .env("NOTIFY_SOCKET", self.0.join("notify"))
            .env("WATCHDOG_USEC", "30000000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux, and root")
    }

    /// The agent's data path, as soon as it answers; `None` if it ends instead.
    fn datapath(&self, agent: &mut Child) -> Option<serde_json::Value> {
        let limit = Instant::now() + LIMIT;
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

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits for the agent's end; returns its log, what it left behind, and its exit code.
fn end(agent: Child) -> (String, String, Option<i32>) {
    let Output {
        status,
        stdout,
        stderr,
    } = agent.wait_with_output().expect("the agent ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(stderr), text(stdout), status.code())
}

/// Call it after an agent has tried IPVS: that loads the module.
fn kernel_has_ipvs() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

#[test]
fn without_the_bpf_system_call_ipvs_is_used_or_both_refusals_are_reported() {
    let test = Folder::new("auto");
    let mut agent = test.agent("", false);
    let found = test.datapath(&mut agent);
    if let Some(answer) = &found {
        let datapath = &answer["datapath"];
        assert_eq!(datapath["kind"], "ipvs", "{datapath}");
        assert_eq!(datapath["rung"], "ipvs", "{datapath}");
        assert_eq!(datapath["steps_down"], 1, "{datapath}");
        let reason = datapath["reason"].as_str().expect("a reason");
        assert!(reason.contains("Operation not permitted"), "{reason}");
        test.stop();
    }
    let (log, left, code) = end(agent);
    assert_eq!(left, "", "{log}");
    assert_eq!(found.is_some(), kernel_has_ipvs(), "{log}");
    if found.is_some() {
        assert_eq!(code, Some(0), "{log}");
    } else {
        assert_eq!(code, Some(1), "{log}");
        for part in [
            "no data path works on this node",
            "eBPF: ",
            "Operation not permitted",
            "IPVS: ",
            "module ip_vs",
        ] {
            assert!(log.contains(part), "'{part}' is missing in: {log}");
        }
    }
}

#[test]
fn ipvs_alone_runs_or_reports_what_the_kernel_lacks() {
    let test = Folder::new("ipvs");
    let mut agent = test.agent("--datapath ipvs", true);
    let found = test.datapath(&mut agent);
    if found.is_some() {
        test.stop();
    }
    let (log, left, code) = end(agent);
    assert_eq!(left, "", "{log}");
    assert_eq!(found.is_some(), kernel_has_ipvs(), "{log}");
    if found.is_none() {
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("load the module ip_vs"), "{log}");
        assert!(!log.contains("eBPF: "), "it was not requested: {log}");
    }
}

#[test]
fn ebpf_alone_does_not_fall_back() {
    let test = Folder::new("ebpf");
    let mut agent = test.agent("--datapath ebpf", false);
    assert!(test.datapath(&mut agent).is_none());
    let (log, left, code) = end(agent);
    assert_eq!((left.as_str(), code), ("", Some(1)), "{log}");
    assert!(log.contains("Operation not permitted"), "{log}");
}

#[test]
fn where_everything_works_ebpf_is_used() {
    let test = Folder::new("works");
    let mut agent = test.agent("", true);
    let answer = test.datapath(&mut agent);
    if answer.is_some() {
        test.stop();
    }
    let (log, left, code) = end(agent);
    let answer = answer.unwrap_or_else(|| panic!("the agent has ended: {log}"));
    assert_eq!(answer["datapath"]["kind"], "ebpf", "{answer}");
    assert_eq!((left.as_str(), code), ("", Some(0)), "{log}");
}

#[test]
fn an_agent_that_waits_for_docker_is_alive_and_not_ready() {
    let test = Folder::new("waits");
    // As systemd listens.
    let service_manager = UnixDatagram::bind(test.0.join("notify")).expect("a socket");
    service_manager
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a limit");
    let mut agent = test.agent("", true);
    let answer = test.datapath(&mut agent);
    let mut reports = Vec::new();
    while answer.is_some() && reports.len() < 3 {
        let mut report = [0; 256];
        let length = service_manager.recv(&mut report).expect("the loop reports");
        reports.push(String::from_utf8_lossy(&report[..length]).trim().to_owned());
    }
    let health = Command::new(paths::program("mesh-agent"))
        .args(["health", "--admin-socket"])
        .arg(test.socket())
        .output()
        .expect("mesh-agent can be run");
    if answer.is_some() {
        test.stop();
    }
    let (log, _, code) = end(agent);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(reports, ["WATCHDOG=1"; 3], "{log}");
    let reason = String::from_utf8_lossy(&health.stderr);
    assert!(
        health.status.code() == Some(1) && reason.contains("not ready: waiting for Docker"),
        "{reason}"
    );
}
