//! What the services of a token's holder may have beyond ordinary containers: `bind:/srv`, `host-network`.

use std::{fmt, str::FromStr};

use crate::by_text::by_text;

/// A permission that gives containers power over their node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// To mount a folder of the node, or anything in it.
    Bind(String),
    /// To use the node's network.
    HostNetwork,
    /// To have a capability beyond the engine's default set.
    Capability(String),
    /// To use a device file of the node.
    Device(String),
}

impl Grant {
    /// Whether this grant includes another.
    #[must_use]
    pub fn allows(&self, needed: &Self) -> bool {
        match (self, needed) {
            (Self::Bind(folder), Self::Bind(path)) => contains(folder, path),
            (Self::Capability(mine), Self::Capability(theirs)) => mine == "ALL" || mine == theirs,
            (mine, theirs) => mine == theirs,
        }
    }

    /// The grant for a capability, whichever of its names is used.
    #[must_use]
    pub fn capability(name: &str) -> Self {
        let name = name.to_ascii_uppercase();
        Self::Capability(name.strip_prefix("CAP_").unwrap_or(&name).to_owned())
    }
}

/// Whether a path is a folder or in it. One that goes up, or that is only known on the node, is in none.
fn contains(folder: &str, path: &str) -> bool {
    let is_plain = |path: &str| path.starts_with('/') && !path.contains("{{");
    let parts = |path: &'_ str| -> Vec<String> {
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect()
    };
    let (folder, inside) = (parts(folder), parts(path));
    is_plain(path) && !inside.iter().any(|part| part == "..") && inside.starts_with(&folder)
}

impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(folder) => write!(formatter, "bind:{folder}"),
            Self::HostNetwork => formatter.write_str("host-network"),
            Self::Capability(name) => write!(formatter, "capability:{name}"),
            Self::Device(path) => write!(formatter, "device:{path}"),
        }
    }
}

/// The text is not a grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid permission {0:?}: use bind:/folder, host-network, capability:NAME or device:/dev/name")]
pub struct InvalidGrant(String);

impl FromStr for Grant {
    type Err = InvalidGrant;

    fn from_str(text: &str) -> Result<Self, InvalidGrant> {
        let is_path = |path: &str| path.starts_with('/') && !path.split('/').any(|part| part == "..");
        match text.split_once(':') {
            None if text == "host-network" => Ok(Self::HostNetwork),
            Some(("bind", folder)) if is_path(folder) => Ok(Self::Bind(folder.to_owned())),
            Some(("capability", name)) if !name.is_empty() => Ok(Self::capability(name)),
            Some(("device", path)) if is_path(path) => Ok(Self::Device(path.to_owned())),
            _ => Err(InvalidGrant(text.to_owned())),
        }
    }
}

by_text!(
    Grant,
    "^(bind:/.*|host-network|capability:.+|device:/.*)$",
    "What services may have beyond ordinary containers: `bind:/srv`, `capability:NET_ADMIN`."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_parsed_from_its_text() {
        for text in [
            "bind:/srv/data",
            "host-network",
            "capability:NET_ADMIN",
            "device:/dev/fuse",
        ] {
            assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "bind",
            "bind:srv",
            "bind:/srv/../etc",
            "host",
            "capability:",
            "device:fuse",
        ] {
            assert!(wrong.parse::<Grant>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_folder_includes_what_is_in_it_and_nothing_else() {
        let srv: Grant = "bind:/srv/".parse().unwrap();
        let allows = |path: &str| srv.allows(&Grant::Bind(path.to_owned()));
        assert!(allows("/srv") && allows("/srv/data") && allows("//srv/./data/"));
        for outside in [
            "/",
            "/srvx",
            "/etc",
            "/srv/../etc",
            "srv",
            "/srv/{{.Node.ID}}",
            "",
        ] {
            assert!(!allows(outside), "{outside}");
        }
        let all: Grant = "bind:/".parse().unwrap();
        assert!(all.allows(&Grant::Bind("/run/mesh/admin.sock".to_owned())));
        let cap: Grant = "capability:cap_net_admin".parse().unwrap();
        assert!(cap.allows(&Grant::capability("NET_ADMIN")) && !cap.allows(&Grant::capability("SYS_ADMIN")));
    }
}
