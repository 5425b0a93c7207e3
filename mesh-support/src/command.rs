//! Runs a program and returns its output.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

/// Runs a program in the calling thread's namespaces, with `input` on its standard input, and returns what it
/// wrote.
///
/// # Errors
/// When it cannot be started, or fails; its arguments, its standard error and the input are in the message.
pub fn output(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let line = || [&[program], arguments].concat().join(" ");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("could not run `{}`; is it installed? {error}", line())))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("`{}` failed: {errors}{input}", line())));
    }
    written?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
