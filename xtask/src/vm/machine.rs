//! One virtual machine: boots a kernel over this machine's file system by virtme-ng and qemu, runs a shell
//! script in it, and ends. Depends on `command` and `paths`.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{
    command::{command, line},
    lab::state::remove_folder,
    paths,
    phases::Output,
};

const GUEST: &str = include_str!("guest.sh");

/// What virtme-ng ends with when the machine ended without the command's exit code.
const NO_CODE: i32 = 255;

/// How often to check whether the machine has ended.
const PAUSE: Duration = Duration::from_millis(50);

/// A virtual machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel's image; its modules are found from where it is (`lib/modules` beside `boot`).
    pub kernel: PathBuf,
    /// Memory as qemu takes it, e.g. `4G`.
    pub memory: String,
    /// Processors.
    pub cpus: u32,
    /// After this long the machine is ended.
    pub limit: Duration,
    /// Whether to use hardware virtualization rather than software emulation.
    pub kvm: bool,
    /// Whether to show the kernel's messages.
    pub console: bool,
}

impl Machine {
    /// Boots, runs a shell script as root in the workspace's folder, and returns its exit code. Its output is
    /// this process's. All of this machine's files are there; what the script writes is lost, but in the
    /// target folder.
    ///
    /// # Errors
    /// When the machine cannot be started, ends before the script does, or takes longer than its limit.
    pub fn run(&self, script: &str) -> Result<i32> {
        self.start(script, |output, errors| {
            thread::scope(|scope| {
                scope.spawn(|| pass_on(output, io::stdout()));
                pass_on(errors, io::stderr());
            });
        })
    }

    /// [`run`](Self::run), as a phase: its lines are the phase's.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_to(&self, script: &str, output: &Output) -> Result<i32> {
        self.start(script, |lines, errors| {
            thread::scope(|scope| {
                scope.spawn(|| output.lines(lines));
                output.lines(errors);
            });
        })
    }

    fn start(
        &self,
        script: &str,
        show: impl FnOnce(Option<ChildStdout>, Option<ChildStderr>) + Send,
    ) -> Result<i32> {
        let target = fs::canonicalize(paths::target()).context("there is no target folder")?;
        let folder = RunFolder::new()?;
        let path = folder.path.join("guest.sh");
        fs::write(&path, GUEST).with_context(|| format!("could not write {}", path.display()))?;
        let path = folder.path.join("command.sh");
        let script = format!("{}\n{script}\n", environment());
        fs::write(&path, script).with_context(|| format!("could not write {}", path.display()))?;

        let paths = [folder.path.as_path(), target.as_path(), self.kernel.as_path()];
        for path in paths {
            // virtme-ng hands them to a shell, to qemu and to the kernel's command line.
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._+-~".contains(letter);
            if !path.to_str().is_some_and(|text| text.chars().all(plain)) {
                bail!(
                    "the path {} has letters that cannot be handed to a virtual machine",
                    path.display()
                );
            }
        }
        // The machine ends with this process, however that ends: `setpriv` ties the pid namespace to this
        // process, and all that virtme-ng starts to the pid namespace.
        let mut machine = command([
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child=KILL",
            "--",
        ]);
        machine
            .arg(paths::vm().join("venv/bin/vng"))
            .args([
                "--force-9p",
                "--disable-monitor",
                "--cpus",
                &self.cpus.to_string(),
            ])
            .args(["--memory", &self.memory, "--run"])
            .arg(&self.kernel)
            .arg("--rwdir")
            .arg(&target)
            // Once more, for the guest to read programs from with a cache.
            .args(["--rodir", "/run/usr=/usr"])
            // dockerd loads a profile where there is AppArmor, with a program that not every machine has.
            .args(["--append", "apparmor=0"]);
        if !self.kvm {
            // What guards against other users of a real processor costs an emulated one dearly.
            machine.args(["--disable-kvm", "--append", "mitigations=off"]);
        }
        if self.console {
            machine.arg("--verbose");
        }
        machine
            .arg("--")
            .arg(format!(
                "sh {0}/guest.sh {0} {1}",
                folder.path.display(),
                target.display()
            ))
            .env("PATH", path_with_venv()?)
            // Where virtme-ng leaves small files should it be ended.
            .env("TMPDIR", &folder.path)
            .current_dir(paths::workspace())
            .stdin(Stdio::null())
            // Pipes, as qemu opens what it finds there anew, and a file would be cut to nothing by that.
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = machine
            .spawn()
            .with_context(|| format!("could not start `{}`", line(&machine)))?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(|| show(output, errors));
            self.wait(child)
        })
    }

    fn wait(&self, child: Child) -> Result<i32> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let watches: Vec<_> = [SIGINT, SIGTERM, SIGHUP]
            .into_iter()
            .map(|signal| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
            .collect();
        let outcome = self.wait_or_end(child, &interrupted);
        for watch in watches.into_iter().flatten() {
            signal_hook::low_level::unregister(watch);
        }
        outcome
    }

    fn wait_or_end(&self, mut child: Child, interrupted: &AtomicBool) -> Result<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = child
                .try_wait()
                .context("could not wait for the virtual machine")?
            {
                return match status.code() {
                    Some(NO_CODE) | None => bail!(
                        "the virtual machine ended before its command did ({status}); --console shows its kernel's \
                         messages"
                    ),
                    Some(code) => Ok(code),
                };
            }
            let late = begin.elapsed() >= self.limit;
            if late || interrupted.load(Ordering::SeqCst) {
                child.kill().context("could not end the virtual machine")?;
                child
                    .wait()
                    .context("could not wait for the virtual machine's end")?;
                if late {
                    bail!(
                        "the virtual machine was ended after {} s, its limit; --limit sets another",
                        self.limit.as_secs()
                    );
                }
                bail!("interrupted; the virtual machine was ended");
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Copies what comes as it comes. A reader of ours that is gone does not end the machine.
fn pass_on(from: Option<impl Read>, mut to: impl Write) {
    let Some(mut from) = from else {
        return;
    };
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
    }
}

/// The small files of one run, removed with it. They are in the target folder, as the guest's `/tmp` is its
/// own.
struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    fn new() -> Result<Self> {
        remove_stale_runs();
        let path = paths::vm().join(format!("run-{}", std::process::id()));
        remove_folder(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("could not create {}", path.display()))?;
        let path = fs::canonicalize(&path).with_context(|| format!("could not find {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes what killed processes have left.
fn remove_stale_runs() {
    for entry in fs::read_dir(paths::vm()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Shell lines that give the guest what of this process's environment leads to the same files.
fn environment() -> String {
    let mut text = String::new();
    for name in [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "CARGO_TARGET_DIR",
        "RUSTUP_HOME",
        "RUST_BACKTRACE",
        "TERM",
    ] {
        if let Some(value) = std::env::var_os(name) {
            text += &format!("export {name}={}\n", quote(&value.to_string_lossy()));
        }
    }
    text
}

/// An argument, quoted for a shell.
#[must_use]
pub fn quote(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', "'\\''"))
}

fn path_with_venv() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(paths::vm().join("venv/bin"))
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    std::env::join_paths(folders).context("the PATH cannot be extended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_argument_is_one_argument_to_a_shell() -> Result<()> {
        let argument = "it's $HOME; `x`\n\"y\"";
        let echoed = crate::command::run(&mut command([
            "sh",
            "-c",
            &format!("printf %s {}", quote(argument)),
        ]))?;
        assert_eq!(echoed, argument);
        Ok(())
    }
}
