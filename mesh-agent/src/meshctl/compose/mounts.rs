//! A service's `volumes` and `tmpfs`. Pure.

use mesh_orchestrator::spec::{Mount, MountKind};

use super::{ComposeError, field::Field, parts::Names};
use crate::meshctl::{flags::Surroundings, paths::absolute};

const LONG_KEYS: [&str; 8] = [
    "type",
    "source",
    "target",
    "read_only",
    "bind",
    "volume",
    "tmpfs",
    "consistency",
];

/// One entry of `volumes`: `[source:]target[:options]`, or a map.
pub(super) fn volume(
    field: &Field<'_>,
    volumes: &Names,
    surroundings: &Surroundings<'_>,
) -> Result<Mount, ComposeError> {
    let mut mount = if field.value.is_object() {
        long(field)?
    } else {
        short(field)?
    };
    match mount.kind {
        MountKind::Bind => mount.source = host_path(&mount.source, surroundings),
        MountKind::Volume if !mount.source.is_empty() => {
            mount.source = volumes.resolve(&mount.source).map_err(|why| field.refuse(why))?;
        }
        MountKind::Volume | MountKind::Tmpfs => {}
    }
    Ok(mount)
}

/// One entry of `tmpfs`: a path, with options of which only the size is known.
pub(super) fn tmpfs(field: &Field<'_>) -> Result<Mount, ComposeError> {
    let text = field.text()?;
    let (target, options) = text.split_once(':').unwrap_or((&text, ""));
    let mut mount = new(MountKind::Tmpfs, target);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                mount.tmpfs_size_bytes =
                    crate::meshctl::flags::units::bytes(size).map_err(|why| field.refuse(why))?;
            }
            _ => return Err(field.refuse(format!("the option {option:?} is not supported: use size="))),
        }
    }
    Ok(mount)
}

fn new(kind: MountKind, target: &str) -> Mount {
    Mount {
        kind,
        source: String::new(),
        target: target.to_owned(),
        read_only: false,
        tmpfs_size_bytes: 0,
    }
}

fn short(field: &Field<'_>) -> Result<Mount, ComposeError> {
    let text = field.text()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(field.refuse(format!("{text:?} is no volume: use [source:]target[:ro]"))),
    };
    let is_path = source.starts_with(['/', '.', '~']);
    let mut mount = new(
        if is_path {
            MountKind::Bind
        } else {
            MountKind::Volume
        },
        target,
    );
    source.clone_into(&mut mount.source);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            "rw" | "cached" | "delegated" | "consistent" => {}
            other => return Err(field.refuse(format!("the option {other:?} is not supported: use ro or rw"))),
        }
    }
    Ok(mount)
}

fn long(field: &Field<'_>) -> Result<Mount, ComposeError> {
    let mut mount = new(MountKind::Volume, "");
    for (key, value) in field.map()? {
        match key {
            "type" => {
                mount.kind = value.word(&[
                    ("volume", MountKind::Volume),
                    ("bind", MountKind::Bind),
                    ("tmpfs", MountKind::Tmpfs),
                ])?;
            }
            "source" => mount.source = value.text()?,
            "target" => mount.target = value.text()?,
            "read_only" => mount.read_only = value.truth()?,
            "consistency" => {}
            "tmpfs" => {
                for (key, value) in value.map()? {
                    match key {
                        "size" => mount.tmpfs_size_bytes = value.bytes()?,
                        _ => return Err(value.unsupported("only size is")),
                    }
                }
            }
            "bind" | "volume" => {
                for (key, value) in value.map()? {
                    // The engine makes a missing folder for a bind mount in any case.
                    if key != "create_host_path" {
                        return Err(value.unsupported(""));
                    }
                }
            }
            _ => return Err(value.unknown(key, &LONG_KEYS)),
        }
    }
    if mount.target.is_empty() {
        return Err(field.refuse("a target is needed"));
    }
    Ok(mount)
}

fn host_path(path: &str, surroundings: &Surroundings<'_>) -> String {
    let home = path
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (home, (surroundings.variable)("HOME")) {
        (Some(rest), Some(home)) => format!("{home}{rest}"),
        _ => absolute(&surroundings.folder, path),
    }
}
