//! The exit codes of command lines that cannot be understood, which are docker's. The agent has the same.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// 125 for a flag that is unknown, or has an invalid value or none; 0 for help; otherwise 1.
#[must_use]
pub fn exit_code(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        return 0;
    }
    let is_flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.starts_with('-'),
        _ => false,
    };
    match error.kind() {
        // A group of commands without a subcommand prints its help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict | ErrorKind::InvalidSubcommand => 1,
        _ if is_flag => 125,
        _ => 1,
    }
}
