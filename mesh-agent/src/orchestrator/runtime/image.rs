//! Image references and registry credentials. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// That registry's name in credentials.
const DEFAULT_REGISTRY_IN_CREDENTIALS: &str = "https://index.docker.io/v1/";

/// A parsed image name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageReference<'a> {
    /// Everything before the tag.
    pub name: &'a str,
    /// The digest if there is one, else the tag, else `latest`.
    pub version: &'a str,
}

impl<'a> ImageReference<'a> {
    /// Parses a name; every text is valid.
    #[must_use]
    pub fn parse(image: &'a str) -> Self {
        let (tagged, digest) = match image.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(digest)),
            None => (image, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let folder = tagged.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match tagged[folder..].rfind(':') {
            Some(colon) => (&tagged[..folder + colon], Some(&tagged[folder + colon + 1..])),
            None => (tagged, None),
        };
        Self {
            name,
            version: digest.or(tag).unwrap_or("latest"),
        }
    }

    /// Its registry: the host, with the port if one is given.
    #[must_use]
    pub fn registry(&self) -> &'a str {
        match self.name.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
            _ => DEFAULT_REGISTRY,
        }
    }

    /// Whether it is pinned by digest.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.version.contains(':')
    }
}

/// Name and password for a registry. Neither is shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredential {
    /// The user's name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RegistryCredential")
            .finish_non_exhaustive()
    }
}

impl RegistryCredential {
    /// What the engine is sent to log in.
    pub(super) fn body(&self, registry: &str) -> serde_json::Value {
        let server = match registry {
            DEFAULT_REGISTRY => DEFAULT_REGISTRY_IN_CREDENTIALS,
            other => other,
        };
        serde_json::json!({
            "username": self.username,
            "password": self.password,
            "serveraddress": server,
        })
    }

    /// The value of the engine's header `X-Registry-Auth`.
    pub(super) fn header(&self, registry: &str) -> String {
        let body = self.body(registry);
        // The engine accepts only the URL-safe alphabet.
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE, body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_split_at_the_right_colon() {
        for (image, name, version, registry) in [
            ("nginx", "nginx", "latest", "docker.io"),
            ("nginx:1.29", "nginx", "1.29", "docker.io"),
            ("team/web", "team/web", "latest", "docker.io"),
            ("localhost/web:2", "localhost/web", "2", "localhost"),
            (
                "reg.example:5000/web",
                "reg.example:5000/web",
                "latest",
                "reg.example:5000",
            ),
            (
                "reg.example:5000/a/web:3",
                "reg.example:5000/a/web",
                "3",
                "reg.example:5000",
            ),
            ("web:3@sha256:0a", "web", "sha256:0a", "docker.io"),
        ] {
            let reference = ImageReference::parse(image);
            assert_eq!(
                (reference.name, reference.version, reference.registry()),
                (name, version, registry),
                "{image}"
            );
        }
        assert!(ImageReference::parse("web@sha256:0a").is_pinned());
        assert!(!ImageReference::parse("reg.example:5000/web:3").is_pinned());
    }

    #[test]
    fn a_password_is_in_the_header_only() {
        let credential = RegistryCredential {
            username: "carol".into(),
            password: "s?~>cret".into(),
        };
        assert!(!format!("{credential:?}").contains("cret"));
        let header = credential.header("reg.example");
        assert!(!header.contains(['+', '/']), "{header}");
        let body = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE, header).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["password"], "s?~>cret");
        assert_eq!(body["serveraddress"], "reg.example");
    }
}
