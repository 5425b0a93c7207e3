//! Values of a service's keys that are maps or lists of their own: logging, health check, files, hosts. Pure
//! but for environment files.

use mesh_orchestrator::spec::{FileReference, HealthCheck, LogDriver, Platform, Probe};

use super::{ComposeError, field::Field, parts::Names};
use crate::meshctl::{
    flags::{Surroundings, new_check, units},
    paths::absolute,
};

pub(super) fn logging(field: &Field<'_>) -> Result<Option<LogDriver>, ComposeError> {
    let mut driver = None;
    let mut options = std::collections::BTreeMap::new();
    for (key, value) in field.map()? {
        match key {
            "driver" => driver = Some(value.text()?),
            "options" => options = value.labels()?,
            _ => return Err(value.unknown(key, &["driver", "options"])),
        }
    }
    match driver {
        Some(name) => Ok(Some(LogDriver { name, options })),
        None if options.is_empty() => Ok(None),
        None => Err(field.refuse("options need a driver")),
    }
}

pub(super) fn platform(field: &Field<'_>) -> Result<Platform, ComposeError> {
    let text = field.text()?;
    let mut parts = text.split('/');
    Ok(Platform {
        os: parts.next().unwrap_or_default().to_owned(),
        architecture: parts.next().unwrap_or_default().to_owned(),
    })
}

pub(super) fn env_files(
    field: &Field<'_>,
    surroundings: &Surroundings<'_>,
) -> Result<Vec<String>, ComposeError> {
    let mut variables = Vec::new();
    for item in field.one_or_more()? {
        let (mut path, mut required) = (String::new(), true);
        if item.value.is_object() {
            for (key, value) in item.map()? {
                match key {
                    "path" => path = value.text()?,
                    "required" => required = value.truth()?,
                    _ => return Err(value.unknown(key, &["path", "required"])),
                }
            }
        } else {
            path = item.text()?;
        }
        let file = std::path::PathBuf::from(absolute(&surroundings.folder, &path));
        if !required
            && (surroundings.read)(&file).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        {
            continue;
        }
        let read = surroundings.environment_files(&[file]);
        variables.extend(read.map_err(|why| item.refuse(why.to_string()))?);
    }
    Ok(variables)
}

pub(super) fn healthcheck(field: &Field<'_>) -> Result<Option<HealthCheck>, ComposeError> {
    let mut check = new_check(Probe::None);
    let mut has_test = false;
    let mut others = false;
    for (key, value) in field.map()? {
        match key {
            "test" => {
                check.test = test(&value)?;
                has_test = true;
            }
            "disable" if value.truth()? => return Ok(Some(new_check(Probe::None))),
            "disable" => {}
            "interval" => check.interval = value.duration()?,
            "timeout" => check.timeout = value.duration()?,
            "retries" => check.retries = value.number()?,
            "start_period" => check.start_period = value.duration()?,
            "start_interval" => check.start_interval = value.duration()?,
            _ => {
                let known = [
                    "test",
                    "disable",
                    "interval",
                    "timeout",
                    "retries",
                    "start_period",
                    "start_interval",
                ];
                return Err(value.unknown(key, &known));
            }
        }
        others |= !matches!(key, "test" | "disable");
    }
    match (has_test, others) {
        (true, _) => Ok(Some(check)),
        (false, false) => Ok(None),
        (false, true) => Err(field.refuse("times need a test: add test")),
    }
}

fn test(field: &Field<'_>) -> Result<Probe, ComposeError> {
    if !field.value.is_array() {
        return Ok(Probe::Shell(field.text()?));
    }
    let words = field.texts()?;
    match words.split_first() {
        Some((first, [])) if first == "NONE" => Ok(Probe::None),
        Some((first, rest)) if first == "CMD" && !rest.is_empty() => Ok(Probe::Command(rest.to_vec())),
        Some((first, [line])) if first == "CMD-SHELL" => Ok(Probe::Shell(line.clone())),
        _ => Err(field.refuse("the list begins with NONE, CMD or CMD-SHELL (and then one line)")),
    }
}

pub(super) fn references(field: &Field<'_>, names: &Names) -> Result<Vec<FileReference>, ComposeError> {
    let mut references = Vec::new();
    for item in field.list()? {
        let mut reference = FileReference::of("");
        let mut source = String::new();
        if item.value.is_object() {
            for (key, value) in item.map()? {
                match key {
                    "source" => source = value.text()?,
                    "target" => reference.target = Some(value.text()?),
                    "uid" => reference.uid = value.number()?,
                    "gid" => reference.gid = value.number()?,
                    // A number was octal in YAML already; a text is not.
                    "mode" if value.value.is_number() => reference.mode = value.number()?,
                    "mode" => {
                        reference.mode = units::file_mode(&value.text()?).map_err(|why| value.refuse(why))?;
                    }
                    _ => return Err(value.unknown(key, &["source", "target", "uid", "gid", "mode"])),
                }
            }
        } else {
            source = item.text()?;
        }
        reference.source = names.resolve(&source).map_err(|why| item.refuse(why))?;
        // In the container it has the name that the file gives it, not the stack's.
        reference.target.get_or_insert(source);
        references.push(reference);
    }
    Ok(references)
}

/// `name:address`, `name=address`, or a map.
pub(super) fn hosts(field: &Field<'_>) -> Result<Vec<String>, ComposeError> {
    let mut hosts = Vec::new();
    let mut pairs = Vec::new();
    if field.value.is_array() {
        for item in field.list()? {
            let text = item.text()?;
            let (name, address) = text
                .split_once('=')
                .or_else(|| text.split_once(':'))
                .ok_or_else(|| item.refuse(format!("{text:?} is no host: use name=address")))?;
            pairs.push((name.to_owned(), address.to_owned(), item));
        }
    } else {
        for (name, value) in field.map()? {
            for address in value.one_or_more()? {
                pairs.push((name.to_owned(), address.text()?, address));
            }
        }
    }
    for (name, address, at) in pairs {
        let plain = address.trim_start_matches('[').trim_end_matches(']');
        if plain.parse::<std::net::IpAddr>().is_err() {
            return Err(at.refuse(format!("{address:?} is no IP address")));
        }
        hosts.push(format!("{name}:{plain}"));
    }
    Ok(hosts)
}
