//! Checks whether a file is an agent for this machine: first its header, then its answers to `--version` and
//! `--check`. Only afterwards may it be started as the agent.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::Path,
    process::Stdio,
    time::Duration,
};

use object::{
    LittleEndian,
    elf::{EM_AARCH64, EM_RISCV, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP},
    read::elf::{FileHeader as _, ProgramHeader as _},
};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use super::ProgramError;

/// Linkers put the program headers within this many bytes.
const MAX_HEAD_BYTES: u64 = 64 << 10;
/// How long a program may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How much of its output is read.
const MAX_ANSWER_BYTES: u64 = 2048;

/// This machine's architecture as ELF headers name it; `None` for others than those listed.
const MACHINE: Option<u16> = if cfg!(target_arch = "x86_64") {
    Some(EM_X86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(EM_AARCH64)
} else if cfg!(target_arch = "riscv64") {
    Some(EM_RISCV)
} else {
    None
};

/// Checks by its header that a file is a static program for this architecture.
///
/// # Errors
/// What it is instead.
pub fn check_file(path: &Path) -> Result<(), ProgramError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_HEAD_BYTES).read_to_end(&mut head))
        .map_err(ProgramError::file("read", path))?;
    check_head(&head).map_err(ProgramError::Unfit)
}

fn check_head(head: &[u8]) -> Result<(), &'static str> {
    const NOT_ELF: &str = "is not a 64-bit ELF program";
    let header = FileHeader64::<LittleEndian>::parse(head).map_err(|_| NOT_ELF)?;
    let order = LittleEndian;
    if header.endian().is_err() || !matches!(header.e_type(order), ET_EXEC | ET_DYN) {
        return Err(NOT_ELF);
    }
    if MACHINE.is_some_and(|machine| header.e_machine(order) != machine) {
        return Err("is built for another architecture");
    }
    let segments = header.program_headers(order, head).map_err(|_| NOT_ELF)?;
    if segments.is_empty() {
        return Err(NOT_ELF);
    }
    if segments.iter().any(|segment| segment.p_type(order) == PT_INTERP) {
        return Err("needs shared libraries (it is not linked statically)");
    }
    Ok(())
}

/// Runs a program with `--version`, then with this agent's arguments and `--check`; returns the version.
///
/// # Errors
/// When it cannot be executed, or does not answer like an agent.
pub async fn try_out(path: &Path, arguments: &[OsString]) -> Result<String, ProgramError> {
    let answer = ask(path, &["--version".into()]).await?;
    let version = answer.strip_prefix("mesh-agent ").map(str::trim);
    let Some(version) = version.filter(|version| !version.is_empty()) else {
        return Err(ProgramError::Answer {
            arguments: "--version".to_owned(),
            outcome: format!("it printed {answer:?}"),
        });
    };
    let mut check = arguments.to_vec();
    check.push("--check".into());
    ask(path, &check).await?;
    Ok(version.to_owned())
}

/// The output of a program that exits successfully.
async fn ask(path: &Path, arguments: &[OsString]) -> Result<String, ProgramError> {
    let refused = |outcome: String| ProgramError::Answer {
        arguments: arguments
            .iter()
            .map(|argument| argument.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" "),
        outcome,
    };
    let mut command = Command::new(path);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| ProgramError::Execute {
        path: path.to_owned(),
        source,
    })?;
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = timeout(ANSWER_LIMIT, async {
        tokio::try_join!(read(stdout, &mut out), read(stderr, &mut errors))?;
        child.wait().await
    });
    let status = match ended.await {
        Ok(status) => status.map_err(|source| ProgramError::Execute {
            path: path.to_owned(),
            source,
        })?,
        Err(_) => {
            let seconds = ANSWER_LIMIT.as_secs();
            return Err(refused(format!("it did not exit within {seconds} s")));
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if status.success() {
        return Ok(text(&out));
    }
    let output = [text(&errors), text(&out)].concat();
    let first_line = output.lines().next().unwrap_or_default().to_owned();
    Err(refused(match first_line.is_empty() {
        true => status.to_string(),
        false => format!("{status}: {first_line}"),
    }))
}

/// Reads a bounded part of an output; a program that writes more gets a closed pipe.
async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>, to: &mut Vec<u8>) -> io::Result<()> {
    match from {
        Some(from) => from.take(MAX_ANSWER_BYTES).read_to_end(to).await.map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// The smallest program: a header and one segment.
    fn program(machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[20] = 1;
        bytes[32] = 64;
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    #[test]
    fn only_a_static_program_for_this_architecture_passes() {
        let machine = MACHINE.unwrap();
        assert_eq!(check_head(&program(machine, 1)), Ok(()));
        let mut large = program(machine, 1);
        large[4] = 1;
        for (head, expected) in [
            (program(machine, PT_INTERP), "statically"),
            (program(machine ^ 1, 1), "another architecture"),
            (program(machine, 1)[..70].to_vec(), "not a 64-bit ELF"),
            (b"#!/bin/sh\necho mesh-agent 1\n".to_vec(), "not a 64-bit ELF"),
            (Vec::new(), "not a 64-bit ELF"),
            (large, "not a 64-bit ELF"),
        ] {
            let refused = check_head(&head).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    fn script(folder: &Path, text: &str) -> std::path::PathBuf {
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_program_must_print_its_version_and_accept_the_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<OsString> = vec!["run".into(), "--orchestrator".into()];
        let good = "case \"$*\" in --version) echo mesh-agent 9.9;; \
                    'run --orchestrator --check') ;; *) exit 9;; esac";
        let version = try_out(&script(folder.path(), good), &arguments).await;
        assert_eq!(version.unwrap(), "9.9");
        for (text, expected) in [
            ("echo nginx 1.27", "nginx 1.27"),
            ("exit 1", "exit status: 1"),
            (
                "[ $1 = --version ] && echo mesh-agent 0.1 || { echo unknown flag >&2; exit 2; }",
                "exit status: 2: unknown flag",
            ),
            ("yes", "--version"),
        ] {
            let error = try_out(&script(folder.path(), text), &arguments)
                .await
                .unwrap_err();
            let error = error.to_string();
            assert!(error.contains(expected), "{error}");
        }
        fs::write(folder.path().join("program"), "\x7fELF nonsense").unwrap();
        let error = try_out(&folder.path().join("program"), &arguments)
            .await
            .unwrap_err();
        assert!(matches!(error, ProgramError::Execute { .. }), "{error}");
    }
}
