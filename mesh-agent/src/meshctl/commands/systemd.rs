//! `meshctl systemd generate`: a unit that represents a service, so that other units can depend on it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mesh_orchestrator::spec::name::check_name;

use super::print;
use crate::{admin::DEFAULT_SOCKET, meshctl::failure::Failure};

/// Units for systemd.
#[derive(Debug, Subcommand)]
pub enum SystemdCommand {
    /// Print a unit that is active while a service is ready
    ///
    /// Starting the unit resumes the service, stopping it pauses the service. Other units can name it in
    /// After= and Requires=.
    Generate(Generate),
}

/// A unit for a service.
#[derive(Debug, Args)]
pub struct Generate {
    /// Print the template mesh-agent@.service, for all services
    #[arg(long)]
    template: bool,
    /// Path of meshctl
    #[arg(long, value_name = "PATH", default_value = "/usr/local/bin/meshctl")]
    meshctl: PathBuf,
    /// Time limit for the service to become ready, and to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u32,
    /// The service's name
    #[arg(value_name = "SERVICE", required_unless_present = "template")]
    service: Option<String>,
}

pub(super) fn run(socket: &Path, command: SystemdCommand) -> Result<(), Failure> {
    let SystemdCommand::Generate(generate) = command;
    if let Some(service) = &generate.service {
        check_name("service", service).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    if !generate.meshctl.is_absolute() {
        return Err(Failure::Flag(
            "--meshctl: systemd requires an absolute path".into(),
        ));
    }
    let service = generate.service.as_deref().filter(|_| !generate.template);
    print(&unit(service, &generate.meshctl, socket, generate.timeout))
}

/// The unit of one service, or the template for all.
fn unit(service: Option<&str>, meshctl: &Path, socket: &Path, timeout: u32) -> String {
    let (name, file) = match service {
        Some(service) => (service, format!("mesh-agent@{service}.service")),
        None => ("%i", "mesh-agent@.service".to_owned()),
    };
    let meshctl = quoted(&meshctl.to_string_lossy());
    let socket = if socket == Path::new(DEFAULT_SOCKET) {
        String::new()
    } else {
        format!(" --socket {}", quoted(&socket.to_string_lossy()))
    };
    format!(
        "# /etc/systemd/system/{file}\n\
         [Unit]\n\
         Description=Service {name} of the mesh's orchestrator\n\
         Documentation=man:systemd.unit(5)\n\
         Wants=mesh-agent.service\n\
         After=mesh-agent.service\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={meshctl}{socket} service attach {name}\n\
         TimeoutStartSec={timeout}\n\
         TimeoutStopSec={timeout}\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// A command-line argument in systemd's quoting.
fn quoted(argument: &str) -> String {
    let argument = argument.replace('%', "%%").replace('$', "$$");
    if argument
        .contains(|character: char| character.is_whitespace() || matches!(character, '"' | '\'' | '\\' | ';'))
    {
        format!("\"{}\"", argument.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        argument
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_ready_when_the_service_is() {
        let text = unit(
            Some("web"),
            Path::new("/usr/bin/meshctl"),
            Path::new(DEFAULT_SOCKET),
            60,
        );
        assert!(
            text.starts_with("# /etc/systemd/system/mesh-agent@web.service\n[Unit]\n"),
            "{text}"
        );
        for line in [
            "Type=notify",
            "ExecStart=/usr/bin/meshctl service attach web",
            "After=mesh-agent.service",
            "TimeoutStopSec=60",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        let template = unit(None, Path::new("/a b/meshctl"), Path::new("/run/x.sock"), 60);
        assert!(
            template.contains("ExecStart=\"/a b/meshctl\" --socket /run/x.sock service attach %i\n"),
            "{template}"
        );
    }
}
