//! Validates a container: its environment, mounts, devices, health check and files.

use std::collections::BTreeSet;

use super::labels::check_labels;
use crate::spec::{ContainerSpec, FileReference, Mount, MountKind, Probe, SpecError, name::check_name};

pub(super) fn check_container(container: &ContainerSpec) -> Result<(), SpecError> {
    let at = |field: &str| format!("task_template.container_spec.{field}");
    check_labels(&at("labels"), container.labels.keys())?;
    for (index, variable) in container.env.iter().enumerate() {
        if variable.is_empty() || variable.starts_with('=') || variable.contains('\0') {
            return Err(SpecError::invalid(
                at(&format!("env[{index}]")),
                variable,
                "NAME=value or NAME",
            ));
        }
    }
    let mut targets = BTreeSet::new();
    for (index, mount) in container.mounts.iter().enumerate() {
        check_mount(&at(&format!("mounts[{index}]")), mount)?;
        if !targets.insert(&mount.target) {
            let field = at(&format!("mounts[{index}].target"));
            return Err(SpecError::invalid(
                field,
                &mount.target,
                "a path that no other mount has",
            ));
        }
    }
    for (list, name) in [
        (&container.capability_add, "capability_add"),
        (&container.capability_drop, "capability_drop"),
    ] {
        for (index, capability) in list.iter().enumerate() {
            let letter = |character: char| character.is_ascii_alphabetic() || character == '_';
            if capability.is_empty() || !capability.chars().all(letter) {
                let field = at(&format!("{name}[{index}]"));
                return Err(SpecError::invalid(
                    field,
                    capability,
                    "a capability such as NET_ADMIN, or ALL",
                ));
            }
        }
    }
    for (index, device) in container.devices.iter().enumerate() {
        let field = at(&format!("devices[{index}]"));
        absolute(&format!("{field}.host_path"), &device.host_path)?;
        absolute(&format!("{field}.container_path"), &device.container_path)?;
        let known = |character: char| matches!(character, 'r' | 'w' | 'm');
        if device.permissions.is_empty() || !device.permissions.chars().all(known) {
            let field = format!("{field}.permissions");
            return Err(SpecError::invalid(
                field,
                &device.permissions,
                "a combination of r, w and m",
            ));
        }
    }
    check_health(container)?;
    if let Some(signal) = &container.stop_signal {
        let name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '-');
        if signal.is_empty() || !signal.chars().all(name) {
            return Err(SpecError::invalid(
                at("stop_signal"),
                signal,
                "the name or number of a signal, such as SIGTERM or 15",
            ));
        }
    }
    for (list, name) in [(&container.secrets, "secrets"), (&container.configs, "configs")] {
        for (index, file) in list.iter().enumerate() {
            check_file(&at(&format!("{name}[{index}]")), file)?;
        }
    }
    Ok(())
}

fn check_health(container: &ContainerSpec) -> Result<(), SpecError> {
    let Some(check) = &container.healthcheck else {
        return Ok(());
    };
    let at = |field: &str| format!("task_template.container_spec.healthcheck.{field}");
    match &check.test {
        Probe::Command(command) if command.is_empty() => {
            return Err(SpecError::invalid(
                at("test.command"),
                "[]",
                "a program and its arguments",
            ));
        }
        Probe::Shell(line) if line.is_empty() => {
            return Err(SpecError::invalid(
                at("test.shell"),
                line,
                "a non-empty command line",
            ));
        }
        Probe::Http { path, .. } if !path.starts_with('/') => {
            return Err(SpecError::invalid(
                at("test.http.path"),
                path,
                "a path that starts with /",
            ));
        }
        Probe::Http { port: 0, .. } | Probe::Tcp { port: 0 } => {
            return Err(SpecError::invalid(at("test.port"), 0, "1 to 65535"));
        }
        Probe::None | Probe::Command(_) | Probe::Shell(_) | Probe::Http { .. } | Probe::Tcp { .. } => {}
    }
    for (field, value) in [("interval", check.interval), ("timeout", check.timeout)] {
        if value.is_zero() {
            return Err(SpecError::invalid(at(field), "0s", "at least 1ms"));
        }
    }
    if check.retries == 0 {
        return Err(SpecError::invalid(at("retries"), 0, "at least 1"));
    }
    Ok(())
}

fn check_mount(field: &str, mount: &Mount) -> Result<(), SpecError> {
    absolute(&format!("{field}.target"), &mount.target)?;
    let source = format!("{field}.source");
    match mount.kind {
        MountKind::Bind => absolute(&source, &mount.source)?,
        MountKind::Volume if mount.source.is_empty() => {}
        MountKind::Volume => check_name(&source, &mount.source)?,
        MountKind::Tmpfs if !mount.source.is_empty() => {
            return Err(SpecError::invalid(
                source,
                &mount.source,
                "empty: a tmpfs has no source",
            ));
        }
        MountKind::Tmpfs => {}
    }
    if mount.tmpfs_size_bytes != 0 && mount.kind != MountKind::Tmpfs {
        let field = format!("{field}.tmpfs_size_bytes");
        return Err(SpecError::invalid(
            field,
            mount.tmpfs_size_bytes,
            "0 unless the type of the mount is tmpfs",
        ));
    }
    Ok(())
}

fn check_file(field: &str, file: &FileReference) -> Result<(), SpecError> {
    check_name(&format!("{field}.source"), &file.source)?;
    if let Some(target) = &file.target
        && (target.is_empty() || target.contains('\0') || target.split('/').any(|part| part == ".."))
    {
        return Err(SpecError::invalid(
            format!("{field}.target"),
            target,
            "a file name or path without ..",
        ));
    }
    if file.mode > 0o7777 {
        return Err(SpecError::invalid(
            format!("{field}.mode"),
            file.mode,
            "0 to 4095 (octal 7777)",
        ));
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), SpecError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(SpecError::invalid(field, path, "an absolute path"))
    }
}
