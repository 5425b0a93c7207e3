//! The configuration file: TOML with the names of the long flags. What the command line or the environment
//! sets is not taken from it. Its values become flags, so that each is checked like its flag.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::RunOptions;

/// Where the file is looked for; it may be missing there.
const DEFAULT_PATH: &str = "/etc/mesh/agent.toml";
/// The subcommand whose flags are the file's keys.
const RUN: &str = "run";
/// Flags that are not settings.
const NO_SETTINGS: [&str; 4] = ["config", "check", "help", "version"];

/// The flag that names the file, of every subcommand.
#[derive(Clone, Debug, Args)]
pub struct ConfigFlag {
    /// File with settings, as TOML: each key is the name of a flag of `run` without its dashes. Flags and
    /// environment variables have precedence.
    #[arg(
        long,
        global = true,
        env = "MESH_CONFIG",
        value_name = "FILE",
        default_value = DEFAULT_PATH
    )]
    pub config: PathBuf,
}

/// The settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line itself is wrong, or only asks for help.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what is expected there.
        source: Box<toml::de::Error>,
    },
    /// A key that is no flag's name.
    #[error("{}{}: unknown key '{key}'; did you mean '{nearest}'?", path.display(), at(*line))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key's line.
        line: Option<usize>,
        /// The key.
        key: String,
        /// The known key that is most like it.
        nearest: String,
    },
    /// A value of a kind that no flag takes.
    #[error("{}{}: '{key}' must be {expected}", path.display(), at(*line))]
    Kind {
        /// The file.
        path: PathBuf,
        /// The key's line.
        line: Option<usize>,
        /// The key.
        key: String,
        /// What the flag takes.
        expected: &'static str,
    },
    /// A value that its flag does not allow.
    #[error("{}{}: {reason}", path.display(), at(*line))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The value's line; `None` if it is not about a single value.
        line: Option<usize>,
        /// Why, as the command line would say.
        reason: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

/// A command line and the file that completes it.
#[derive(Clone, Debug)]
pub struct Settings {
    command: Command,
    arguments: Vec<OsString>,
}

/// The settings of `run` by their names, as text.
type Values = BTreeMap<String, Vec<OsString>>;

/// Finds out what has changed in the settings since they were read.
#[derive(Clone, Debug)]
pub struct Reloader {
    settings: Settings,
    /// What the agent runs with.
    values: Values,
}

impl Settings {
    /// Of a program whose subcommand `run` has [`RunOptions`]. Reads nothing yet.
    #[must_use]
    pub fn new(command: Command, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            command,
            arguments: arguments.into_iter().collect(),
        }
    }

    /// Reads the command line, the environment and the file.
    ///
    /// # Errors
    /// When one of them is wrong, and at `--help` and the like.
    pub fn matches(&self) -> Result<ArgMatches, ConfigError> {
        let parse = |arguments: &[OsString]| self.command.clone().try_get_matches_from(arguments);
        let given = self.command.clone().ignore_errors(true);
        let given = given.try_get_matches_from(&self.arguments).ok();
        let Some((name, given)) = given.as_ref().and_then(ArgMatches::subcommand) else {
            return Ok(parse(&self.arguments)?);
        };
        let (Some(path), Some(subcommand)) = (
            given.try_get_one::<PathBuf>("config").ok().flatten(),
            self.command.find_subcommand(name),
        ) else {
            return Ok(parse(&self.arguments)?);
        };
        let is_named = is_given(given, "config");
        let Some(file) = read(path, is_named)? else {
            return Ok(parse(&self.arguments)?);
        };
        let mut arguments = self.arguments.clone();
        for (key, value) in &file.table {
            let Some(setting) = find(&self.command, RUN, key) else {
                return Err(unknown(path, &file, key, &self.command));
            };
            // Other subcommands have some of the settings.
            if subcommand.get_name() != RUN && find(&self.command, name, key).is_none() {
                continue;
            }
            let flags = flags(path, &file, setting, key, value)?;
            if !is_given(given, setting.get_id().as_str()) {
                arguments.extend(flags);
            }
        }
        parse(&arguments).map_err(|error| match parse(&self.arguments) {
            Ok(_) => ConfigError::Refused {
                path: path.clone(),
                line: file.line_of(&error),
                reason: first_paragraph(&error.to_string()),
            },
            Err(error) => ConfigError::CommandLine(error),
        })
    }

    /// Each setting of `run` in these matches.
    fn values(&self, matches: &ArgMatches) -> Values {
        let run = matches.subcommand_matches(RUN).unwrap_or(matches);
        let value = |argument: &Arg| {
            let raw = run.try_get_raw(argument.get_id().as_str()).ok().flatten();
            let raw = raw.map(|raw| raw.map(ToOwned::to_owned).collect());
            (name_of(argument).to_owned(), raw.unwrap_or_default())
        };
        settings(&self.command, RUN).map(value).collect()
    }
}

impl Reloader {
    /// For an agent that runs with these matches.
    #[must_use]
    pub fn new(settings: Settings, matches: &ArgMatches) -> Self {
        Self {
            values: settings.values(matches),
            settings,
        }
    }

    /// Reads everything again. `apply` is called with the new options and the name of each setting that has
    /// changed, and says whether it can apply it. Returns the names of those that it could not.
    ///
    /// # Errors
    /// When the command line, the environment or the file is wrong.
    pub fn reload(
        &mut self,
        mut apply: impl FnMut(&str, &RunOptions) -> bool,
    ) -> Result<BTreeSet<String>, ConfigError> {
        let matches = self.settings.matches()?;
        let run = matches.subcommand_matches(RUN).unwrap_or(&matches);
        let options = RunOptions::from_arg_matches(run)?;
        let mut waiting = BTreeSet::new();
        for (name, value) in self.settings.values(&matches) {
            if self.values.get(&name) == Some(&value) {
                continue;
            }
            if apply(&name, &options) {
                self.values.insert(name, value);
            } else {
                // Named again each time, until the restart.
                waiting.insert(name);
            }
        }
        Ok(waiting)
    }
}

/// Whether the command line or the environment sets it.
fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches!(
        matches.try_contains_id(id).map(|_| matches.value_source(id)),
        Ok(Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    )
}

/// A file's content.
struct Content {
    table: Table,
    text: String,
}

impl Content {
    /// The line of a key's value, or of one in its list.
    fn line(&self, key: &str, is_it: impl Fn(&DeValue<'_>) -> bool) -> Option<usize> {
        let table = DeTable::parse(&self.text).ok()?;
        let (name, value) = table.get_ref().iter().find(|(name, _)| name.get_ref() == key)?;
        let within = value.get_ref().as_array().and_then(|values| {
            let mut values = values.iter();
            values
                .find(|value| is_it(value.get_ref()))
                .map(|value| value.span())
        });
        let start = within.unwrap_or_else(|| name.span()).start;
        Some(self.text.get(..start)?.matches('\n').count() + 1)
    }

    /// The line of the value that the command line refuses.
    fn line_of(&self, error: &clap::Error) -> Option<usize> {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let flag = text(ContextKind::InvalidArg)?.strip_prefix("--")?;
        let key = flag.split([' ', '=']).next()?;
        let refused = text(ContextKind::InvalidValue).unwrap_or_default();
        self.line(key, |value| {
            value.as_str().is_some_and(|value| value.contains(refused))
        })
    }
}

/// The file's content; `None` if there is none where it may be missing.
fn read(path: &Path, is_named: bool) -> Result<Option<Content>, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => return Ok(None),
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    match text.parse() {
        Ok(table) => Ok(Some(Content { table, text })),
        Err(source) => Err(ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        }),
    }
}

fn name_of(argument: &Arg) -> &str {
    argument.get_long().unwrap_or_default()
}

/// The flags of a subcommand that are settings.
fn settings<'a>(command: &'a Command, subcommand: &str) -> impl Iterator<Item = &'a Arg> + use<'a> {
    let arguments = command.find_subcommand(subcommand).map(Command::get_arguments);
    arguments
        .into_iter()
        .flatten()
        .filter(|argument| !name_of(argument).is_empty() && !NO_SETTINGS.contains(&name_of(argument)))
}

fn find<'a>(command: &'a Command, subcommand: &str, key: &str) -> Option<&'a Arg> {
    settings(command, subcommand).find(|argument| name_of(argument) == key)
}

fn unknown(path: &Path, file: &Content, key: &str, command: &Command) -> ConfigError {
    let names = settings(command, RUN).map(name_of);
    let nearest = names.min_by_key(|name| strsim::damerau_levenshtein(key, name));
    ConfigError::UnknownKey {
        path: path.to_owned(),
        line: file.line(key, |_| false),
        key: key.to_owned(),
        nearest: nearest.unwrap_or_default().to_owned(),
    }
}

/// A key and its value as they are on the command line.
fn flags(
    path: &Path,
    file: &Content,
    setting: &Arg,
    key: &str,
    value: &Value,
) -> Result<Vec<OsString>, ConfigError> {
    let kind = |expected| ConfigError::Kind {
        path: path.to_owned(),
        line: file.line(key, |_| false),
        key: key.to_owned(),
        expected,
    };
    if !setting.get_action().takes_values() {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{key}").into()]),
            Value::Boolean(false) => Ok(Vec::new()),
            _ => Err(kind("true or false")),
        };
    }
    let values = match value {
        Value::Array(values) => values.as_slice(),
        single => std::slice::from_ref(single),
    };
    let flag = |value: &Value| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(boolean) => boolean.to_string(),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                return Err(kind("a string, a number, true or false, or a list of these"));
            }
        };
        Ok(format!("--{key}={text}").into())
    };
    values.iter().map(flag).collect()
}

/// An error of the command line without its head and its hint.
fn first_paragraph(text: &str) -> String {
    let text = text.split("\n\n").next().unwrap_or_default();
    text.strip_prefix("error: ").unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests;
