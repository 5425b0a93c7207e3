//! Values of single flags that stand for an object of the specification: mounts, ports, files, devices.
//! Pure; docker's syntax.

use std::path::Path;

use mesh_orchestrator::spec::{
    Device, FileReference, Mount, MountKind, PortConfig, PortRange, Protocol, PublishMode, Spread,
};

use super::{
    fields::{comma_separated, truth},
    units,
};

/// `type=bind,source=/srv,target=/data,readonly`; the type is `volume` if left out. A source that begins with
/// a dot is relative to `folder`.
pub(crate) fn mount(text: &str, folder: &Path) -> Result<Mount, String> {
    let mut mount = Mount {
        kind: MountKind::Volume,
        source: String::new(),
        target: String::new(),
        read_only: false,
        tmpfs_size_bytes: 0,
    };
    for field in comma_separated(text.trim())? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let needed = || match value {
            Some(value) if !value.is_empty() && value.trim() == value => Ok(value),
            Some(_) | None => Err(format!(
                "{field:?} in {text:?}: use {key}=value, without spaces around it"
            )),
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => {
                mount.kind = match needed()?.to_ascii_lowercase().as_str() {
                    "bind" => MountKind::Bind,
                    "volume" => MountKind::Volume,
                    "tmpfs" => MountKind::Tmpfs,
                    other => {
                        return Err(format!(
                            "a mount's type cannot be {other:?}: use bind, volume or tmpfs"
                        ));
                    }
                };
            }
            "source" | "src" => mount.source = source(needed()?, folder),
            "target" | "dst" | "destination" => needed()?.clone_into(&mut mount.target),
            "readonly" | "ro" => mount.read_only = value.map_or(Ok(true), truth)?,
            "tmpfs-size" => mount.tmpfs_size_bytes = units::bytes(needed()?)?,
            // Docker ignores it on Linux, too.
            "consistency" => {}
            other => {
                return Err(format!(
                    "the mount option {other:?} in {text:?} is not supported: use type, source, target, readonly \
                     or tmpfs-size"
                ));
            }
        }
    }
    if mount.target.is_empty() {
        return Err(format!("the mount {text:?} has no target: add target=/path"));
    }
    Ok(mount)
}

fn source(text: &str, folder: &Path) -> String {
    if text.starts_with('.') {
        crate::meshctl::paths::absolute(folder, text)
    } else {
        text.to_owned()
    }
}

/// `[published:]target[/protocol]`, both also ranges, or `published=8080,target=80,protocol=udp,mode=host`.
pub(crate) fn publish(text: &str) -> Result<PortConfig, String> {
    if !text.contains('=') {
        return short_publish(text);
    }
    let mut target = None;
    let mut config = PortConfig {
        protocol: Protocol::Tcp,
        target_port: PortRange::single(1),
        published_port: None,
        publish_mode: PublishMode::Ingress,
    };
    for field in comma_separated(text)? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(format!("{field:?} in {text:?}: use key=value"));
        };
        match key.to_ascii_lowercase().as_str() {
            "target" => target = Some(value.parse::<PortRange>()?),
            // 0 asks docker for any, as nothing does.
            "published" if value == "0" => {}
            "published" => config.published_port = Some(value.parse()?),
            "protocol" => {
                config.protocol = match value.to_ascii_lowercase().as_str() {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return Err(format!("the protocol {value:?} is not supported: use tcp or udp")),
                };
            }
            "mode" => {
                config.publish_mode = match value.to_ascii_lowercase().as_str() {
                    "ingress" => PublishMode::Ingress,
                    "host" => PublishMode::Host,
                    _ => return Err(format!("the mode {value:?} is not possible: use ingress or host")),
                };
            }
            other => {
                return Err(format!(
                    "{other:?} in {text:?} is not known: use published, target, protocol and mode"
                ));
            }
        }
    }
    config.target_port = target.ok_or_else(|| format!("the port {text:?} has no target: add target=80"))?;
    Ok(config)
}

fn short_publish(text: &str) -> Result<PortConfig, String> {
    if text.matches(':').count() > 1 {
        return Err(format!(
            "{text:?} names an address: a service answers on every address of every node, use [published:]target"
        ));
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    // Docker allows `:80` for any published port.
    let text = format!(
        "{}/{}",
        ports.strip_prefix(':').unwrap_or(ports),
        protocol.to_ascii_lowercase()
    );
    text.parse::<PortConfig>().map_err(|error| error.to_string())
}

/// A secret or config: its name alone, or `source=name,target=file,uid=0,gid=0,mode=0444`.
pub(crate) fn file_reference(text: &str) -> Result<FileReference, String> {
    if !text.contains(['=', ',']) {
        return Ok(FileReference::of(text));
    }
    let mut reference = FileReference::of("");
    for field in comma_separated(text)? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(format!("{field:?} in {text:?}: use key=value"));
        };
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("{key} in {text:?}: use a number"))
        };
        match key.to_ascii_lowercase().as_str() {
            "source" | "src" => value.clone_into(&mut reference.source),
            "target" => reference.target = Some(value.to_owned()),
            "uid" => reference.uid = number()?,
            "gid" => reference.gid = number()?,
            "mode" => reference.mode = units::file_mode(value)?,
            other => {
                return Err(format!(
                    "{other:?} in {text:?} is not known: use source, target, uid, gid and mode"
                ));
            }
        }
    }
    if reference.source.is_empty() {
        return Err(format!("{text:?} does not say which: add source=name"));
    }
    Ok(reference)
}

/// `/dev/host[:/dev/container[:rwm]]`.
pub(crate) fn device(text: &str) -> Result<Device, String> {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let (container, permissions) = (parts.next(), parts.next());
    if host.is_empty() || parts.next().is_some() {
        return Err(format!(
            "{text:?} is no device: use /dev/host[:/dev/container[:rwm]]"
        ));
    }
    Ok(Device {
        host_path: host.to_owned(),
        container_path: container.unwrap_or(host).to_owned(),
        permissions: permissions.unwrap_or("rwm").to_owned(),
    })
}

/// `spread=node.labels.zone`.
pub(crate) fn preference(text: &str) -> Result<Spread, String> {
    match text.split_once('=') {
        Some(("spread", key)) if !key.is_empty() => Ok(Spread {
            spread: key.to_owned(),
        }),
        _ => Err(format!(
            "{text:?} is no placement preference: use spread=node.labels.<name>"
        )),
    }
}

/// A network's name; docker's long form with `name=` is understood, options in it are not.
pub(crate) fn network(text: &str) -> Result<String, String> {
    if !text.contains('=') {
        return Ok(text.to_owned());
    }
    let mut name = None;
    for field in comma_separated(text)? {
        match field.split_once('=') {
            Some(("name", value)) => name = Some(value.to_owned()),
            _ => {
                return Err(format!(
                    "the network option {field:?} is not supported: use name="
                ));
            }
        }
    }
    name.ok_or_else(|| format!("{text:?} names no network"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mount_is_a_volume_unless_told() {
        let folder = Path::new("/home/me");
        let mount_of = |text| mount(text, folder).unwrap();
        let volume = mount_of("source=data,target=/data");
        assert_eq!((volume.kind, volume.source.as_str()), (MountKind::Volume, "data"));
        let bind = mount_of("type=bind,src=./site,dst=/srv,ro");
        assert_eq!((bind.source.as_str(), bind.read_only), ("/home/me/site", true));
        let tmpfs = mount_of("type=tmpfs,destination=/tmp,tmpfs-size=64m,readonly=false");
        assert_eq!((tmpfs.tmpfs_size_bytes, tmpfs.read_only), (64 << 20, false));
        for text in [
            "",
            "type=bind,source=/a",
            "type=npipe,target=/a",
            "target",
            "target=/a,bind-propagation=shared",
            "target= /a",
            "target=/a,ro=perhaps",
        ] {
            assert!(mount(text, folder).is_err(), "{text}");
        }
    }

    #[test]
    fn ports_have_a_short_and_a_long_form() {
        let same = |short: &str, long: &str| assert_eq!(publish(short).unwrap(), publish(long).unwrap());
        same("8080:80", "published=8080,target=80");
        same("53:53/udp", "target=53,published=53,protocol=udp,mode=ingress");
        same("8000-8010:80-90/TCP", "target=80-90,published=8000-8010");
        same("80", "target=80");
        same(":80", "target=80,published=0");
        let host = publish("mode=host,target=80,published=80").unwrap();
        assert_eq!(host.publish_mode, PublishMode::Host);
        for text in [
            "",
            "x",
            "80:",
            "127.0.0.1:80:80",
            "80/sctp",
            "target=0",
            "mode=host",
            "target=80,a=b",
            "1-2:1-3",
        ] {
            assert!(publish(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_a_name_or_fields() {
        assert_eq!(file_reference("key").unwrap().source, "key");
        let long = file_reference("source=key,target=/etc/key,uid=1,gid=2,mode=0400").unwrap();
        assert_eq!(
            (long.target.as_deref(), long.uid, long.gid, long.mode),
            (Some("/etc/key"), 1, 2, 0o400)
        );
        for text in ["target=x", "source=a,mode=z", "source=a,b", "source=a,x=y"] {
            assert!(file_reference(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices_preferences_and_networks() {
        assert_eq!(device("/dev/fuse").unwrap().container_path, "/dev/fuse");
        assert_eq!(device("/dev/a:/dev/b:r").unwrap().permissions, "r");
        assert!(device("/a:/b:r:x").is_err());
        assert_eq!(
            preference("spread=node.labels.zone").unwrap().spread,
            "node.labels.zone"
        );
        assert!(preference("pack=node.id").is_err());
        assert_eq!(network("name=web").as_deref(), Ok("web"));
        assert!(network("name=web,alias=x").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "[a-z=,:/0-9\" -]{0,24}") {
            let _ = mount(&text, Path::new("/"));
            let _ = (publish(&text), file_reference(&text), device(&text), preference(&text), network(&text));
        }
    }
}
