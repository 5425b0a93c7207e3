//! Compose files as what a stack consists of.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use mesh_orchestrator::{
    api::types::Confidential,
    spec::{Replicated, ReplicatedJob, ServiceMode, ServiceSpec, check_dependencies, name::check_name},
};
use serde_json::Value;

use super::{
    ComposeError,
    convert::{self, Condition, Parts},
    field::Field,
    interpolate::interpolate,
    merge::merge,
    parts::{self, Content, Declared},
};
use crate::meshctl::{flags::Surroundings, paths::absolute, views::stacks::NAMESPACE};

/// Largest compose file, in bytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;

const KEYS: [&str; 7] = [
    "version", "name", "services", "networks", "volumes", "secrets", "configs",
];

/// What a stack consists of.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// Its services, named `STACK_service`.
    pub(crate) services: Vec<ServiceSpec>,
    /// Secrets and configs to make.
    pub(crate) files: Vec<NewFile>,
    /// Secrets and configs that must be there already.
    pub(crate) external: Vec<(FileKind, String)>,
    /// Keys that change nothing here.
    pub(crate) ignored: Vec<String>,
}

/// What a file is in the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Kept in memory, never shown.
    Secret,
    /// A file.
    Config,
}

impl fmt::Display for FileKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

/// A secret or config that the file brings.
#[derive(Clone, Debug)]
pub(crate) struct NewFile {
    /// Which of them.
    pub(crate) kind: FileKind,
    /// Its name: `STACK_name`.
    pub(crate) name: String,
    /// Its labels, the stack's among them.
    pub(crate) labels: BTreeMap<String, String>,
    /// What is in it, in base64.
    pub(crate) data: Confidential,
    /// How many bytes that are in the clear.
    pub(crate) size: usize,
}

/// Reads compose files, the later ones on top of the earlier. Paths in them are relative to the first one's
/// folder, which `surroundings` has.
pub(crate) fn read(
    files: &[(PathBuf, Vec<u8>)],
    stack: &str,
    surroundings: &Surroundings<'_>,
) -> Result<Stack, ComposeError> {
    check_stack_name(stack)?;
    let mut document = Value::Object(serde_json::Map::new());
    for (file, bytes) in files {
        let mut part = parse(file, bytes)?;
        interpolate(&mut part, "", surroundings.variable)?;
        merge(&mut document, part);
    }
    convert(&document, stack, surroundings)
}

/// A stack's name begins the names of all that is in it.
pub(crate) fn check_stack_name(stack: &str) -> Result<(), ComposeError> {
    check_name("stack", stack).map_err(|why| ComposeError::refused("the stack's name", why.to_string()))
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Value, ComposeError> {
    let fail = |message: String| ComposeError::Yaml {
        file: file.to_owned(),
        message,
    };
    if bytes.len() > MAX_BYTES {
        return Err(fail(format!(
            "it has {} bytes, {MAX_BYTES} are allowed",
            bytes.len()
        )));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| fail(error.to_string()))?;
    // As docker's reader: `yes` is a text, `0440` a number.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        legacy_octal_numbers: true,
    };
    let document: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| fail(error.to_string()))?;
    match document {
        Value::Object(_) => Ok(document),
        _ => Err(fail("its top is no map".to_owned())),
    }
}

fn convert(document: &Value, stack: &str, surroundings: &Surroundings<'_>) -> Result<Stack, ComposeError> {
    let mut ignored = Vec::new();
    let null = Value::Null;
    let part = |key: &str| Field::new(key, document.get(key).unwrap_or(&null));
    if let Value::Object(map) = document {
        for (key, value) in map {
            if !KEYS.contains(&key.as_str()) && !key.starts_with("x-") {
                return Err(match key.as_str() {
                    "include" => Field::new(key, value).unsupported("name the files with -c"),
                    _ => Field::new(key, value).unknown(key, &KEYS),
                });
            }
        }
    }
    let services = part("services").map()?;
    if services.is_empty() {
        return Err(part("services").refuse("there is no service"));
    }
    let networks = parts::networks(&part("networks"), &mut ignored)?;
    let volumes = parts::volumes(&part("volumes"), stack, &mut ignored)?;
    let (secrets, declared_secrets) = parts::files(&part("secrets"), "secrets", stack)?;
    let (configs, declared_configs) = parts::files(&part("configs"), "configs", stack)?;
    let parts = Parts {
        stack,
        networks,
        volumes,
        secrets,
        configs,
        services: services.iter().map(|(name, _)| *name).collect(),
    };
    let mut specs = Vec::new();
    for (name, field) in &services {
        specs.push(convert::service(name, field, &parts, surroundings, &mut ignored)?);
    }
    run_to_completion(&mut specs, &services, stack)?;
    let dependencies = specs
        .iter()
        .map(|spec| {
            (
                spec.name.as_str(),
                spec.depends_on.iter().map(String::as_str).collect(),
            )
        })
        .collect();
    check_dependencies(&dependencies).map_err(|why| part("services").refuse(why.to_string()))?;
    let (mut files, mut external) = (Vec::new(), Vec::new());
    for (kind, declared) in [
        (FileKind::Secret, declared_secrets),
        (FileKind::Config, declared_configs),
    ] {
        for one in declared {
            match content(&one, surroundings)? {
                Some(bytes) => files.push(new_file(kind, one, &bytes, stack)),
                None => external.push((kind, one.name)),
            }
        }
    }
    specs.sort_by(|left, right| left.name.cmp(&right.name));
    ignored.sort();
    Ok(Stack {
        services: specs,
        files,
        external,
        ignored,
    })
}

/// Makes jobs of services that others wait for to complete: one that is started again never does.
fn run_to_completion(
    specs: &mut [ServiceSpec],
    services: &[(&str, Field<'_>)],
    stack: &str,
) -> Result<(), ComposeError> {
    for (_, service) in services {
        for (name, condition) in convert::conditions(service)? {
            if condition != Condition::Completed {
                continue;
            }
            let name = format!("{stack}_{name}");
            for spec in specs
                .iter_mut()
                .filter(|spec| spec.name == name && !spec.mode.is_job())
            {
                let mut job = spec.clone();
                job.mode = match spec.mode {
                    ServiceMode::Replicated(Replicated { replicas }) => {
                        ServiceMode::ReplicatedJob(ReplicatedJob {
                            max_concurrent: replicas,
                            total_completions: replicas,
                        })
                    }
                    ServiceMode::Global(global) => ServiceMode::GlobalJob(global),
                    job => job,
                };
                *spec = job.validated().map_err(|why| {
                    service.refuse(format!("{name} is to complete, and so is a job: {why}"))
                })?;
            }
        }
    }
    Ok(())
}

fn content(declared: &Declared, surroundings: &Surroundings<'_>) -> Result<Option<Vec<u8>>, ComposeError> {
    match &declared.content {
        Content::External => Ok(None),
        Content::Text(text) => Ok(Some(text.clone().into_bytes())),
        Content::Variable(name) => match (surroundings.variable)(name) {
            Some(value) => Ok(Some(value.into_bytes())),
            None => Err(ComposeError::refused(
                &declared.path,
                format!("the variable {name} is not set"),
            )),
        },
        Content::File(path) => {
            let file = PathBuf::from(absolute(&surroundings.folder, path));
            (surroundings.read)(&file)
                .map(Some)
                .map_err(|source| ComposeError::Read { file, source })
        }
    }
}

fn new_file(kind: FileKind, declared: Declared, bytes: &[u8], stack: &str) -> NewFile {
    use base64::Engine as _;
    let mut labels = declared.labels;
    labels.insert(NAMESPACE.into(), stack.into());
    NewFile {
        kind,
        name: declared.name,
        labels,
        data: base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        size: bytes.len(),
    }
}
