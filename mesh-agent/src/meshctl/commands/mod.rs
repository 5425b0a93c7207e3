//! The orchestrator's commands: each reads its flags, asks the API, prints. Everything that decides is
//! elsewhere.

mod backup;
mod config;
mod logs;
mod managed;
mod node;
mod registry;
mod secret;
mod service;
mod service_change;
mod stack;
mod systemd;
mod token;
mod webhook;

use std::{
    io::{self, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use mesh_orchestrator::objects::Timestamp;
use reqwest::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::{
    client::{Api, ApiError},
    failure::Failure,
    flags::Surroundings,
    output::{
        Format, Layout,
        template::{Row, Template},
    },
    views::inspect::without_empty,
};

/// Commands of the orchestrator; most are the docker CLI's.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Manage services
    Service {
        /// What to do.
        #[command(subcommand)]
        command: service::ServiceCommand,
    },
    /// Manage nodes
    Node {
        /// What to do.
        #[command(subcommand)]
        command: node::NodeCommand,
    },
    /// Manage stacks
    Stack {
        /// What to do.
        #[command(subcommand)]
        command: stack::StackCommand,
    },
    /// Manage secrets
    Secret {
        /// What to do.
        #[command(subcommand)]
        command: secret::SecretCommand,
    },
    /// Manage configs
    Config {
        /// What to do.
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Manage credentials for registries
    Registry {
        /// What to do.
        #[command(subcommand)]
        command: registry::RegistryCommand,
    },
    /// Manage webhooks of services
    Webhook {
        /// What to do.
        #[command(subcommand)]
        command: webhook::WebhookCommand,
    },
    /// Manage backups of the orchestrator's store
    #[command(alias = "snapshot")]
    Backup {
        /// What to do.
        #[command(subcommand)]
        command: backup::BackupCommand,
    },
    /// Manage tokens for the HTTP API
    Token {
        /// What to do.
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Manage the mesh agent of every node
    Managed {
        /// What to do.
        #[command(subcommand)]
        command: managed::ManagedCommand,
    },
    /// Generate systemd units for services
    Systemd {
        /// What to do.
        #[command(subcommand)]
        command: systemd::SystemdCommand,
    },
}

/// Runs a command against the agent that listens on a socket.
///
/// # Errors
/// What failed, why, and the remedy; [`Failure::exit_code`] is the process's.
pub async fn run(socket: &Path, command: Command) -> Result<(), Failure> {
    let api = Api::new(socket)?;
    match command {
        Command::Service { command } => service::run(&api, command).await,
        Command::Node { command } => node::run(&api, command).await,
        Command::Stack { command } => stack::run(&api, command).await,
        Command::Secret { command } => secret::run(&api, command).await,
        Command::Config { command } => config::run(&api, command).await,
        Command::Registry { command } => registry::run(&api, command).await,
        Command::Webhook { command } => webhook::run(&api, command).await,
        Command::Backup { command } => backup::run(&api, command).await,
        Command::Token { command } => token::run(&api, command).await,
        Command::Managed { command } => managed::run(&api, command).await,
        Command::Systemd { command } => systemd::run(socket, command),
    }
}

/// How a list is printed.
#[derive(Clone, Debug, Default, Args)]
pub struct ListFlags {
    /// Only display IDs
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Filter output based on conditions provided
    #[arg(long, short = 'f', value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl ListFlags {
    fn format(&self) -> Format {
        Format::of(self.format.as_deref())
    }

    fn print(&self, layout: &Layout, rows: &[Value]) -> Result<(), Failure> {
        print(&layout.render(rows, &self.format(), self.quiet)?)
    }
}

/// How a list that has no filters is printed.
#[derive(Clone, Debug, Default, Args)]
pub struct PlainListFlags {
    /// Only display names
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl PlainListFlags {
    fn print(&self, layout: &Layout, rows: &[Value]) -> Result<(), Failure> {
        print(&layout.render(rows, &Format::of(self.format.as_deref()), self.quiet)?)
    }
}

/// How objects are inspected.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct InspectFlags {
    /// Format output using a custom template: 'json' or a Go template
    #[arg(long, short = 'f', value_name = "FORMAT", conflicts_with = "pretty")]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long)]
    pretty: bool,
}

impl InspectFlags {
    /// Objects as a JSON list, by a template, or as texts for people; `shape` gives them docker's keys.
    fn print<T>(
        &self,
        objects: &[T],
        shape: impl Fn(&T) -> Value,
        pretty: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        print(&self.text(objects, shape, pretty)?)
    }

    fn text<T>(
        &self,
        objects: &[T],
        shape: impl Fn(&T) -> Value,
        pretty: impl Fn(&T) -> String,
    ) -> Result<String, Failure> {
        if self.pretty {
            return Ok(objects.iter().map(pretty).collect());
        }
        let values = objects.iter().map(shape);
        match self.format.as_deref() {
            None => indented(&values.map(without_empty).collect()),
            Some("json") => Ok(format!("{}\n", values.map(without_empty).collect::<Value>())),
            // As docker ends a line that is not there.
            Some(_) if objects.is_empty() => Ok("\n".to_owned()),
            Some(template) => {
                let template = Template::parse(template)?;
                let mut text = String::new();
                for value in values {
                    text.push_str(&template.render(&value, Row::Values)?);
                    text.push('\n');
                }
                Ok(text)
            }
        }
    }
}

impl InspectFlags {
    /// Asks for each name and shows what there is, though something else is missing; as docker.
    async fn each<T, F>(
        &self,
        names: &[String],
        mut ask: impl FnMut(String) -> F,
        shape: impl Fn(&T) -> Value,
        pretty: impl Fn(&T) -> String,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for name in names {
            match ask(name.clone()).await {
                Ok(object) => found.push(object),
                Err(error) if error.is(StatusCode::NOT_FOUND) => failures.push(error.into()),
                Err(error) => return Err(error.into()),
            }
        }
        self.print(&found, shape, pretty)?;
        Failure::all(failures)
    }
}

/// An object of the API as it is.
fn as_it_is<T: Serialize>(object: &T) -> Value {
    // What the API answers is JSON.
    serde_json::to_value(object).unwrap_or_default()
}

/// JSON with docker's four spaces.
fn indented(value: &Value) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| Failure::Outcome(format!("an answer is no JSON: {error}")))?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// To standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(Failure::io("cannot write to standard output"))
}

/// A line on standard output.
fn say(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// A line on standard error that is no failure.
fn warn(line: &str) {
    let _ = writeln!(io::stderr(), "WARNING: {line}");
}

/// Warnings of the orchestrator.
fn warn_all(warnings: Option<&[String]>) {
    warnings.unwrap_or_default().iter().for_each(|line| warn(line));
}

/// The caller's clock.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Does something with each name, all of them though some fail; prints the names that it was done with.
async fn each<F>(names: &[String], mut act: impl FnMut(String) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<String, Failure>>,
{
    let mut failures = Vec::new();
    for name in names {
        match act(name.clone()).await {
            Ok(line) => say(&line)?,
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}

/// Removes the named objects of a collection; prints the names of those that it removed.
async fn remove_each(api: &Api, collection: &str, names: &[String]) -> Result<(), Failure> {
    each(names, |name| async move {
        api.delete(&[collection, &name]).await?;
        Ok(name)
    })
    .await
}

/// The caller's machine.
fn with_surroundings<T>(act: impl FnOnce(&Surroundings<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    let folder = std::env::current_dir().map_err(Failure::io("cannot find out the working folder"))?;
    act(&Surroundings {
        folder,
        variable: &|name| std::env::var(name).ok(),
        read: &|path| std::fs::read(path),
    })
}

/// A file's bytes, or standard input's for `-`; no more than `most`.
fn read_file(file: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let (name, read) = if file == Path::new("-") {
        (
            "standard input".to_owned(),
            io::stdin().lock().take(limit).read_to_end(&mut bytes),
        )
    } else {
        let read = std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_end(&mut bytes));
        (file.display().to_string(), read)
    };
    read.map_err(Failure::io(format!("could not read {name}")))?;
    if bytes.len() > most {
        return Err(Failure::Usage(format!(
            "{name} has more than the {most} bytes that are allowed"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Line::try_parse_from(format!("meshctl {line}").split(' ')).map(|line| line.command)
    }

    #[test]
    fn the_command_lines_are_consistent() {
        use clap::CommandFactory;
        Line::command().debug_assert();
    }

    #[test]
    fn what_a_docker_user_types_is_understood() {
        for line in [
            "service create --name web -p 80:80 nginx sh -c true",
            "service ls -q",
            "service ls --filter name=web --format table",
            "service ps web db --no-trunc -f desired-state=running",
            "service inspect --pretty web",
            "service inspect -f {{.Spec.Name}} web",
            "service update web --image nginx:2 -d",
            "service update --detach=false --force web",
            "service update --rollback web",
            "service scale web=3 db=1 -d",
            "service rollback -q web",
            "service logs -f --tail 10 -t --since 5m web",
            "service rm web db",
            "service remove web",
            "service rebalance web",
            "service history web",
            "service diff web 1 2",
            "node ls",
            "node ps self",
            "node inspect self --pretty",
            "node update --availability drain --label-add a=b node1",
            "node rm node1",
            "stack deploy -c a.yml -c b.yml --prune shop",
            "stack up --compose-file a.yml shop",
            "stack ls",
            "stack ps shop --no-trunc",
            "stack services shop -q",
            "stack rm shop other",
            "stack down shop",
            "secret create -l a=b key -",
            "secret ls",
            "secret rm key other",
            "config create settings settings.conf",
            "config inspect --pretty settings",
            "registry login -u me --password-stdin ghcr.io",
            "registry ls",
            "registry logout ghcr.io",
            "webhook create web ci",
            "webhook ls web",
            "webhook disable web ci",
            "backup create",
            "backup ls -q",
            "backup inspect x",
            "backup restore --replace x",
            "snapshot ls",
            "token create ci --scope services:write --scope nodes:read",
            "token ls",
            "token rm ci",
            "managed deploy load-balancer --image mesh-agent:2",
            "managed deploy load-balancer -d",
            "managed ls -q",
            "managed rm load-balancer",
            "systemd generate web",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        for line in [
            "service create",
            "service ps",
            "service update --nope web",
            "service scale",
            "service inspect --pretty --format x web",
            "node update --availability gone n",
            "token create ci --scope pods:read",
            "stack deploy",
            "managed deploy web --image nginx",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn inspection_is_a_list_of_json_with_four_spaces_or_a_template() {
        let objects = [json!({"id": "a", "spec": {"name": "web"}})];
        let text = |format: Option<&str>| {
            let flags = InspectFlags {
                format: format.map(str::to_owned),
                pretty: false,
            };
            flags.text(&objects, Value::clone, |_| String::new()).unwrap()
        };
        assert!(text(None).starts_with("[\n    {\n        \"id\": \"a\",\n"));
        assert_eq!(text(Some("{{.ID}} {{.Spec.Name}}")), "a web\n");
        assert_eq!(
            text(Some("json")),
            "[{\"id\":\"a\",\"spec\":{\"name\":\"web\"}}]\n"
        );
    }
}
