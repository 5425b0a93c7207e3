//! Secrets, configs and registries. What is secret in a request is never shown by `Debug`.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use zeroize::Zeroizing;

use crate::objects::Timestamp;

/// Something secret on its way to the orchestrator; wiped from memory when dropped, never shown.
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
        // The reader's own words would show what stands there.
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

/// A secret to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretCreate {
    /// Unique among secrets; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What is in it, in base64 (RFC 4648, with padding); 500 KiB in the clear at most.
    pub data: Confidential,
}

/// A config to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigCreate {
    /// Unique among configs; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What is in it, in base64 (RFC 4648, with padding); 1000 KiB in the clear at most.
    pub data: Confidential,
}

/// A secret, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    /// Its name for ever; one made anew under the same name has another.
    pub id: String,
    /// What services call it.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last got another value.
    pub updated_at: Timestamp,
    /// How many bytes it has in the clear.
    pub size: usize,
    /// The names of the services that use it.
    #[serde(default)]
    pub services: Vec<String>,
}

/// A config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigView {
    /// Its name for ever; one made anew under the same name has another.
    pub id: String,
    /// What services call it.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last got another value.
    pub updated_at: Timestamp,
    /// How many bytes it has in the clear.
    pub size: usize,
    /// The names of the services that use it.
    #[serde(default)]
    pub services: Vec<String>,
    /// What is in it, in base64; `null` in lists.
    #[serde(default)]
    pub data: Option<String>,
}

/// Who logs in to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryLogin {
    /// The name there.
    pub username: String,
    /// The password or access token there.
    pub password: Confidential,
}

/// A registry that images are pulled from with credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryView {
    /// Its address: `registry.example.com:5000`; `docker.io` is Docker Hub.
    pub host: String,
    /// The name there.
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
    fn what_is_secret_is_in_no_error_and_no_debug_text() {
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
