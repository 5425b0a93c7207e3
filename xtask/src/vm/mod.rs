//! `cargo xtask vm`: runs commands and the tests under another kernel than this machine's, in a virtual
//! machine over this machine's file system. Depends on `setup`, `build` and `lab`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::{lab::check_root, setup};

pub mod kernel;
pub mod machine;
pub mod suite;

pub use machine::Machine;

/// A virtual machine and what to do in it.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(flatten)]
    machine: MachineArguments,
    #[command(subcommand)]
    action: Option<Action>,
    /// The command to run in the machine, as root, in the workspace's folder. This machine's files are
    /// there; what is written is lost, but in the target folder.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Run the tests that depend on the kernel: programs, data paths, and a real Swarm.
    Test(suite::Arguments),
}

/// The virtual machine.
#[derive(Debug, clap::Args)]
pub struct MachineArguments {
    /// The kernel's image; without it Debian's own kernel is downloaded and used.
    #[arg(long, value_name = "IMAGE")]
    kernel: Option<PathBuf>,
    /// The folder of that kernel's modules, the one named after its version; without it they are looked for
    /// in `lib/modules` beside the image's folder.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Memory.
    #[arg(long, default_value = "6G")]
    memory: String,
    /// Processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// End the machine after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    limit: u64,
    /// Use hardware virtualization rather than software emulation.
    #[arg(long)]
    kvm: bool,
    /// Show the kernel's messages.
    #[arg(long)]
    console: bool,
}

impl Default for MachineArguments {
    fn default() -> Self {
        Self {
            kernel: None,
            modules: None,
            memory: "6G".into(),
            cpus: 2,
            limit: 1800,
            kvm: false,
            console: false,
        }
    }
}

impl MachineArguments {
    /// Debian's own kernel, in a machine that is ended after this long.
    #[must_use]
    pub fn lasting(limit: Duration) -> Self {
        Self {
            limit: limit.as_secs(),
            ..Self::default()
        }
    }

    /// Installs what is missing for virtual machines and says which one these arguments describe.
    ///
    /// # Errors
    /// When something cannot be installed, or a given file is not there.
    pub fn machine(&self) -> Result<Machine> {
        setup::vm(self.kernel.is_none())?;
        let kernel = match &self.kernel {
            Some(image) => kernel::staged(image, self.modules.as_deref())?,
            None => match kernel::unpacked(kernel::Debian::Release)? {
                Some(image) => image,
                None => bail!("Debian's kernel is not where set-up unpacks it"),
            },
        };
        Ok(Machine {
            kernel,
            memory: self.memory.clone(),
            cpus: self.cpus,
            limit: Duration::from_secs(self.limit),
            kvm: self.kvm,
            console: self.console,
        })
    }
}

/// Does it; the exit code is the command's.
///
/// # Errors
/// When the machine cannot be set up or started, or is ended at its limit.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_root()?;
    match &arguments.action {
        Some(Action::Test(arguments)) => {
            suite::run(arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        None if arguments.command.is_empty() => bail!("say what to run: `cargo xtask vm -- COMMAND`"),
        None => {
            let quoted: Vec<String> = arguments
                .command
                .iter()
                .map(|argument| machine::quote(argument))
                .collect();
            let code = arguments.machine.machine()?.run(&quoted.join(" "))?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
    }
}
