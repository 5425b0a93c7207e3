//! Published ports as users specify them: single ports and ranges, with or without a published port.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::SpecError;

/// One entry of a service's published ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Transport protocol; TCP if left out.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port or ports inside the container.
    pub target_port: PortRange,
    /// The same number of ports on the nodes; if left out, ports from 30000 to 32767 are assigned.
    #[serde(default)]
    pub published_port: Option<PortRange>,
    /// Which nodes answer; all if left out.
    #[serde(default)]
    pub publish_mode: PublishMode,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Which nodes answer on a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Every node, for any replica.
    #[default]
    Ingress,
    /// Only the nodes with a task of the service, each for its own task; at most one task per node.
    Host,
}

/// One port or a range of ports; in JSON a number or `"8000-8010"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    #[must_use]
    pub fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether a port is in it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The ports, in order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// How many ports.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range has at least one port")]
    pub fn len(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "invalid port {text:?}: use 1 to 65535, or a range such as \"8000-8010\""
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

impl JsonSchema for PortRange {
    fn schema_name() -> Cow<'static, str> {
        "PortRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "One port, or a range of ports: `8000-8010`.",
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"},
            ],
        })
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)
            .map_err(|_| D::Error::custom("expected a port, 1 to 65535, or a range such as \"8000-8010\""))?
        {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for PortConfig {
    type Err = SpecError;

    /// Parses Docker's short form: `[published:]target[/protocol]`, where both may be ranges.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse =
            |_: String| SpecError::invalid("publish", text, "[published:]target[/tcp|/udp], such as 8080:80");
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(refuse(String::new())),
        };
        let (published_port, target_port) = match ports.split_once(':') {
            Some((published, target)) => (Some(published.parse().map_err(refuse)?), target),
            None => (None, ports),
        };
        let config = Self {
            protocol,
            target_port: target_port.parse().map_err(refuse)?,
            published_port,
            publish_mode: PublishMode::Ingress,
        };
        config.check("publish")?;
        Ok(config)
    }
}

impl PortConfig {
    /// Each target port with its requested published port.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, Option<u16>)> {
        let published = self.published_port;
        self.target_port
            .iter()
            .enumerate()
            .map(move |(index, target)| (target, published.and_then(|range| range.iter().nth(index))))
    }

    /// Checks that both ranges have the same length.
    pub(super) fn check(&self, field: &str) -> Result<(), SpecError> {
        match self.published_port {
            Some(published) if published.len() != self.target_port.len() => Err(SpecError::invalid(
                format!("{field}.published_port"),
                published,
                format!("as many ports as target_port ({})", self.target_port.len()),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_dockers_short_form() {
        let port: PortConfig = "8080-8081:80-81/udp".parse().unwrap();
        assert_eq!(port.protocol, Protocol::Udp);
        assert_eq!(
            port.pairs().collect::<Vec<_>>(),
            [(80, Some(8080)), (81, Some(8081))]
        );
        assert_eq!("80".parse::<PortConfig>().unwrap().published_port, None);
    }

    #[test]
    fn refuses_what_is_not_a_port() {
        for text in [
            "",
            "0",
            "65536",
            "80/sctp",
            "8080:80:80",
            "81-80",
            "8080-8081:80",
            "web",
        ] {
            assert!(text.parse::<PortConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn is_a_number_or_a_range_in_json() {
        let read = |text| serde_json::from_str::<PortRange>(text);
        assert_eq!(read("80").unwrap(), PortRange::single(80));
        assert_eq!(
            serde_json::to_string(&read("\"80-81\"").unwrap()).unwrap(),
            "\"80-81\""
        );
        assert!(read("70000").is_err() && read("-1").is_err() && read("[]").is_err());
    }
}
