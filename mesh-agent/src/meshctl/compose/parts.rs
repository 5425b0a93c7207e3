//! What stands beside the services in a compose file: networks, volumes, secrets and configs, and by which
//! names services mean them. Pure.

use std::collections::BTreeMap;

use super::{ComposeError, field::Field};

/// Names in a compose file, and what they are called outside of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// `volumes`, `networks`, ...
    kind: &'static str,
    names: BTreeMap<String, Result<String, String>>,
}

impl Names {
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            names: BTreeMap::new(),
        }
    }

    fn insert(&mut self, key: &str, name: Result<String, String>) {
        self.names.insert(key.to_owned(), name);
    }

    /// What a name in the file stands for.
    pub(super) fn resolve(&self, key: &str) -> Result<String, String> {
        match self.names.get(key) {
            Some(name) => name.clone(),
            None => Err(format!("{key:?} is not among the file's {}", self.kind)),
        }
    }
}

/// A thing's name outside of the file, and whether it is there already.
struct Naming {
    name: Option<String>,
    external: bool,
}

/// Reads `name` and `external`; hands all other keys to `rest`.
fn naming<'a>(
    field: &Field<'a>,
    mut rest: impl FnMut(&str, Field<'a>) -> Result<(), ComposeError>,
) -> Result<Naming, ComposeError> {
    let mut naming = Naming {
        name: None,
        external: false,
    };
    for (key, value) in field.map()? {
        match key {
            "name" => naming.name = Some(value.text()?),
            "external" if value.value.is_object() => {
                naming.external = true;
                for (key, value) in value.map()? {
                    match key {
                        "name" => naming.name = Some(value.text()?),
                        _ => return Err(value.unknown(key, &["name"])),
                    }
                }
            }
            "external" => naming.external = value.truth()?,
            _ if key.starts_with("x-") => {}
            _ => rest(key, value)?,
        }
    }
    Ok(naming)
}

/// Networks of the nodes: `bridge`, `host`, and those that are there already.
pub(super) fn networks(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Names, ComposeError> {
    let mut names = Names::new("networks");
    for name in ["bridge", "host"] {
        names.insert(name, Ok(name.to_owned()));
    }
    // Every service is attached to it unless it says otherwise; a bridge is all that is needed here.
    names.insert("default", Ok("bridge".to_owned()));
    for (key, value) in field.map()? {
        let naming = naming(&value, |_, _| Ok(()))?;
        let name = naming.name.unwrap_or_else(|| key.to_owned());
        let is_builtin = matches!(name.as_str(), "bridge" | "host");
        if naming.external || is_builtin {
            names.insert(key, Ok(name));
        } else {
            if key == "default" {
                ignored.push(value.path.clone());
                continue;
            }
            names.insert(
                key,
                Err(format!(
                    "the network {key:?} would have to be made, which is not supported: leave it out (services reach \
                     each other by their published ports), or make it on each node and say `external: true`"
                )),
            );
        }
    }
    Ok(names)
}

/// Volumes: `STACK_name`, or the name that they are given.
pub(super) fn volumes(
    field: &Field<'_>,
    stack: &str,
    ignored: &mut Vec<String>,
) -> Result<Names, ComposeError> {
    let mut names = Names::new("volumes");
    for (key, value) in field.map()? {
        let naming = naming(&value, |key, value| match key {
            "driver" if value.text()? == "local" => Ok(()),
            "labels" => {
                ignored.push(value.path);
                Ok(())
            }
            "driver" | "driver_opts" => {
                Err(value.unsupported("make the volume on each node and say `external: true`"))
            }
            _ => Err(value.unknown(key, &["name", "external", "driver", "driver_opts", "labels"])),
        })?;
        let default = if naming.external {
            key.to_owned()
        } else {
            format!("{stack}_{key}")
        };
        names.insert(key, Ok(naming.name.unwrap_or(default)));
    }
    Ok(names)
}

/// Where a secret's or config's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is there already.
    External,
    /// A file of the caller's.
    File(String),
    /// A variable of the caller's environment.
    Variable(String),
    /// It stands in the compose file.
    Text(String),
}

/// A secret or config that a compose file tells of.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) content: Content,
}

/// Secrets or configs, and the names by which services mean them.
pub(super) fn files(
    field: &Field<'_>,
    kind: &'static str,
    stack: &str,
) -> Result<(Names, Vec<Declared>), ComposeError> {
    let mut names = Names::new(kind);
    let mut all = Vec::new();
    for (key, value) in field.map()? {
        let mut content = None;
        let mut labels = BTreeMap::new();
        let naming = naming(&value, |key, value| {
            match key {
                "file" => content = Some(Content::File(value.text()?)),
                "environment" => content = Some(Content::Variable(value.text()?)),
                "content" if kind == "configs" => content = Some(Content::Text(value.text()?)),
                "labels" => labels = value.labels()?,
                "driver" | "driver_opts" | "template_driver" => return Err(value.unsupported("")),
                _ => {
                    return Err(value.unknown(
                        key,
                        &["name", "external", "file", "environment", "content", "labels"],
                    ));
                }
            }
            Ok(())
        })?;
        let content = match (naming.external, content) {
            (true, None) => Content::External,
            (false, Some(content)) => content,
            (true, Some(_)) => return Err(value.refuse("what is external has no content here")),
            (false, None) => {
                return Err(value.refuse("say where it comes from: file, environment or external"));
            }
        };
        let default = if naming.external {
            key.to_owned()
        } else {
            format!("{stack}_{key}")
        };
        let name = naming.name.unwrap_or(default);
        names.insert(key, Ok(name.clone()));
        all.push(Declared {
            path: value.path.clone(),
            name,
            labels,
            content,
        });
    }
    Ok((names, all))
}
