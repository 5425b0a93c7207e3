//! Secrets, configs and registries. `Debug` never shows the secret parts of a request.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use zeroize::Zeroizing;

use crate::objects::Timestamp;

/// A secret text on its way to the orchestrator; never shown, and wiped from memory when dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confidential(Zeroizing<String>);

impl Confidential {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Confidential {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl JsonSchema for Confidential {
    fn schema_name() -> Cow<'static, str> {
        "Confidential".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "password"})
    }
}

impl<'de> Deserialize<'de> for Confidential {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The parser's own error would show the value.
        String::deserialize(deserializer)
            .map(Self::from)
            .map_err(|_| D::Error::custom("expected a string"))
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// A secret to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretCreate {
    /// Unique among secrets; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its data in base64 (RFC 4648, with padding); at most 500 KiB when decoded.
    pub data: Confidential,
}

/// A config to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigCreate {
    /// Unique among configs; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its data in base64 (RFC 4648, with padding); at most 1000 KiB when decoded.
    pub data: Confidential,
}

/// A secret, without its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    /// Its id; another one that is created later with the same name has a different id.
    pub id: String,
    /// The name by which services refer to it.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its data last changed.
    pub updated_at: Timestamp,
    /// Size of its data in bytes.
    pub size: usize,
    /// The names of the services that use it.
    #[serde(default)]
    pub services: Vec<String>,
}

/// A config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigView {
    /// Its id; another one that is created later with the same name has a different id.
    pub id: String,
    /// The name by which services refer to it.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its data last changed.
    pub updated_at: Timestamp,
    /// Size of its data in bytes.
    pub size: usize,
    /// The names of the services that use it.
    #[serde(default)]
    pub services: Vec<String>,
    /// Its data in base64; `null` in lists.
    #[serde(default)]
    pub data: Option<String>,
}

/// Credentials for a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryLogin {
    /// The user name.
    pub username: String,
    /// The password or access token.
    pub password: Confidential,
    /// Whether to store it without logging in to the registry first, as where this node cannot reach it.
    #[serde(default)]
    pub unchecked: bool,
}

/// A registry that images are pulled from with credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryView {
    /// Its address: `registry.example.com:5000`; `docker.io` is Docker Hub.
    pub host: String,
    /// The user name.
    pub username: String,
    /// When the first credentials were stored.
    pub created_at: Timestamp,
    /// When these credentials were stored.
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_debug_output_contain_no_secret() {
        let read = |json: &str| serde_json::from_str::<RegistryLogin>(json);
        let login = read(r#"{"username":"a","password":"hunter2"}"#).unwrap();
        assert_eq!(login.password.expose(), "hunter2");
        assert!(!format!("{login:?}").contains("hunter2"));
        let error = read(r#"{"username":"a","password":31337}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("expected a string") && !error.contains("31337"),
            "{error}"
        );
    }
}
