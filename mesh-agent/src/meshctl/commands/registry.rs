//! `meshctl registry`: a password comes from standard input or a prompt; as a flag only with a warning.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use clap::{Args, Subcommand};
use mesh_orchestrator::api::types::{Confidential, RegistryLogin, RegistryView};
use serde_json::Value;

use super::{PlainListFlags, now, say, warn};
use crate::meshctl::{client::Api, failure::Failure, views::files};

/// Docker Hub.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Longest password, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Credentials for registries.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Log in to a registry and store the credentials, for all nodes
    ///
    /// Defaults to Docker Hub if no server is specified.
    Login(Login),
    /// List registries with stored credentials
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// Remove the credentials for a registry
    Logout(Logout),
}

/// Credentials for a registry.
#[derive(Args)]
pub struct Login {
    /// Username
    #[arg(long, short = 'u', value_name = "NAME")]
    username: Option<String>,
    /// Password or access token; better use --password-stdin
    #[arg(long, short = 'p', value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Store the credentials without logging in first, for a registry that this node cannot reach
    #[arg(long)]
    unchecked: bool,
    /// Take the password or access token from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// The registry's address
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Login")
            .field("username", &self.username)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A registry to forget.
#[derive(Debug, Args)]
pub struct Logout {
    /// The registry's address
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

pub(super) async fn run(api: &Api, command: RegistryCommand) -> Result<(), Failure> {
    match command {
        RegistryCommand::Login(login) => {
            let host = host(login.server.as_deref());
            let body = credentials(&login, &host)?;
            let _: Value = api.put(&["registries", &host], None, &body).await?;
            say(&format!("Stored the credentials for {host}"))
        }
        RegistryCommand::Ls(list) => {
            let registries: Vec<RegistryView> = api.get(&["registries"], &[]).await?;
            list.print(&files::REGISTRIES, &files::registry_rows(&registries, now()))
        }
        RegistryCommand::Logout(logout) => {
            let host = host(logout.server.as_deref());
            api.delete(&["registries", &host]).await?;
            say(&format!("Removed the credentials for {host}"))
        }
    }
}

/// The address as images have it; Docker Hub has many.
fn host(server: Option<&str>) -> String {
    let server = server.unwrap_or(DEFAULT_REGISTRY);
    let server = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    let host = server.split('/').next().unwrap_or(server);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" | "" => {
            DEFAULT_REGISTRY.to_owned()
        }
        host => host.to_owned(),
    }
}

fn credentials(login: &Login, host: &str) -> Result<RegistryLogin, Failure> {
    let from_terminal = io::stdin().is_terminal();
    let needs_prompt = login.username.is_none() || (login.password.is_none() && !login.password_stdin);
    if needs_prompt && !from_terminal {
        return Err(Failure::Usage(
            "cannot ask for a name and a password without a terminal: use --username and --password-stdin"
                .into(),
        ));
    }
    let username = match &login.username {
        Some(name) => name.clone(),
        None => {
            let _ = write!(io::stderr(), "Username for {host}: ");
            let mut line = String::new();
            io::stdin()
                .read_line(&mut line)
                .map_err(Failure::io("could not read the user name"))?;
            line.trim().to_owned()
        }
    };
    if username.is_empty() {
        return Err(Failure::Usage("username is empty".into()));
    }
    let password = match (&login.password, login.password_stdin) {
        (Some(password), _) if password != "-" => {
            warn("Using --password via the CLI is insecure. Use --password-stdin.");
            password.clone()
        }
        (Some(_), _) | (None, true) => from_stdin()?,
        (None, false) => {
            rpassword::prompt_password("Password: ").map_err(Failure::io("could not read the password"))?
        }
    };
    if password.trim().is_empty() {
        return Err(Failure::Usage("password is empty".into()));
    }
    Ok(RegistryLogin {
        username,
        password: Confidential::from(password),
        unchecked: login.unchecked,
    })
}

/// All of it but one end of line.
fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(MAX_PASSWORD)
        .read_to_string(&mut text)
        .map_err(Failure::io("could not read the password from standard input"))?;
    let ends = ["\r\n", "\n", "\r"];
    let cut = ends.iter().find_map(|end| text.strip_suffix(end)).map(str::len);
    text.truncate(cut.unwrap_or(text.len()));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_images_have_them() {
        for (given, expected) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("ghcr.io"), "ghcr.io"),
            (
                Some("https://registry.example.com:5000/v2/"),
                "registry.example.com:5000",
            ),
        ] {
            assert_eq!(host(given), expected);
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let login = Login {
            username: Some("me".into()),
            password: Some("hunter2".into()),
            unchecked: false,
            password_stdin: false,
            server: None,
        };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
