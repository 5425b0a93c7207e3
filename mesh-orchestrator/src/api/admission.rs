//! What the services of a token's holder may be: without a grant nothing that gives a container power
//! over its node, and only published ports, secrets and configs that the token names, if it names any. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::types::Grant;
use crate::spec::{MountKind, PortRange, ServiceSpec, TaskRuntime};

/// What a token allows its holder's services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rules {
    /// Beyond ordinary containers.
    pub(super) allow: Vec<Grant>,
    /// The ports that they may publish; any if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ports: Option<Vec<PortRange>>,
    /// What the names of the secrets that they may have begin with; any if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<Vec<String>>,
    /// The same of configs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) configs: Option<Vec<String>>,
}

/// A part of a specification that the token does not allow.
pub(super) struct Refusal {
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) needs: String,
}

impl Rules {
    /// Whether everything that other rules allow is allowed here, too.
    pub(super) fn include(&self, other: &Self) -> bool {
        let ports = match (&self.ports, &other.ports) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(others)) => others.iter().all(|range| self.publishes(*range)),
        };
        ports
            && includes_names(self.secrets.as_deref(), other.secrets.as_deref())
            && includes_names(self.configs.as_deref(), other.configs.as_deref())
            && other.allow.iter().all(|grant| self.grants(grant))
    }

    fn grants(&self, needed: &Grant) -> bool {
        self.allow.iter().any(|grant| grant.allows(needed))
    }

    fn publishes(&self, range: PortRange) -> bool {
        let is_among = |port: u16| {
            let ranges = self.ports.iter().flatten();
            ranges.copied().any(|range| range.contains(port))
        };
        self.ports.is_none() || range.iter().all(is_among)
    }

    /// Checks that the holder may have such a service.
    pub(super) fn check(&self, spec: &ServiceSpec) -> Result<(), Refusal> {
        let task = &spec.task_template;
        let container = &task.container_spec;
        let need = |field, value: &dyn fmt::Display, grant: &Grant| match self.grants(grant) {
            true => Ok(()),
            false => Err(Refusal {
                field,
                value: value.to_string(),
                needs: format!("the permission {grant}"),
            }),
        };
        if task.runtime == TaskRuntime::Agent {
            return Err(Refusal {
                field: "task_template.runtime",
                value: task.runtime.name().to_owned(),
                needs: "the scope all".to_owned(),
            });
        }
        for mount in container
            .mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Bind)
        {
            need(
                "task_template.container_spec.mounts.source",
                &mount.source,
                &Grant::Bind(mount.source.clone()),
            )?;
        }
        if task.networks.iter().any(|network| network == "host") {
            need("task_template.networks", &"host", &Grant::HostNetwork)?;
        }
        for name in &container.capability_add {
            need(
                "task_template.container_spec.capability_add",
                name,
                &Grant::capability(name),
            )?;
        }
        for device in &container.devices {
            let grant = Grant::Device(device.host_path.clone());
            need(
                "task_template.container_spec.devices.host_path",
                &device.host_path,
                &grant,
            )?;
        }
        let files = [
            (
                "task_template.container_spec.secrets.source",
                &container.secrets,
                &self.secrets,
            ),
            (
                "task_template.container_spec.configs.source",
                &container.configs,
                &self.configs,
            ),
        ];
        for (field, files, prefixes) in files {
            let Some(prefixes) = prefixes else { continue };
            if let Some(refused) = files.iter().find(|file| !begins(&file.source, prefixes)) {
                return Err(Refusal {
                    field,
                    value: refused.source.clone(),
                    needs: match prefixes.is_empty() {
                        true => "a token that allows some".to_owned(),
                        false => format!("to begin with {}", prefixes.join(" or ")),
                    },
                });
            }
        }
        let Some(ports) = &self.ports else {
            return Ok(());
        };
        let allowed: Vec<String> = ports.iter().map(ToString::to_string).collect();
        for port in &spec.endpoint_spec.ports {
            if !port
                .published_port
                .is_some_and(|published| self.publishes(published))
            {
                return Err(Refusal {
                    field: "endpoint_spec.ports.published_port",
                    value: port
                        .published_port
                        .map_or_else(String::new, |port| port.to_string()),
                    needs: format!("to be one of {}", allowed.join(", ")),
                });
            }
        }
        Ok(())
    }
}

fn begins(name: &str, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

/// Whether every name that the others allow is allowed by these.
fn includes_names(prefixes: Option<&[String]>, others: Option<&[String]>) -> bool {
    match (prefixes, others) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(prefixes), Some(others)) => others.iter().all(|other| begins(other, prefixes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::testing::spec;

    fn rules(allow: &[&str], ports: Option<&[&str]>) -> Rules {
        Rules {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.map(|ports| ports.iter().map(|text| text.parse().unwrap()).collect()),
            ..Rules::default()
        }
    }

    fn names(secrets: Option<&[&str]>, configs: Option<&[&str]>) -> Rules {
        let owned = |prefixes: &[&str]| -> Vec<String> { prefixes.iter().map(ToString::to_string).collect() };
        Rules {
            secrets: secrets.map(owned),
            configs: configs.map(owned),
            ..Rules::default()
        }
    }

    #[test]
    fn only_secrets_and_configs_with_the_prefixes_may_be_used() {
        let using = |kind: &str, name: &str| {
            spec("web", |json| {
                json["task_template"]["container_spec"][kind] = serde_json::json!([{"source": name}]);
            })
        };
        let limited = names(Some(&["web-", "shared."]), Some(&[]));
        assert!(limited.check(&using("secrets", "web-key")).is_ok());
        assert!(limited.check(&using("secrets", "shared.ca")).is_ok());
        for (kind, name) in [
            ("secrets", "db-key"),
            ("secrets", "my-web-key"),
            ("configs", "web-a"),
        ] {
            assert!(limited.check(&using(kind, name)).is_err(), "{kind} {name}");
            assert!(
                names(None, None).check(&using(kind, name)).is_ok(),
                "{kind} {name}"
            );
        }
        assert!(limited.check(&spec("web", |_| {})).is_ok());
    }

    #[test]
    fn a_token_gives_no_other_names_than_it_has() {
        let mine = names(Some(&["web-"]), None);
        assert!(mine.include(&names(Some(&["web-a", "web-"]), None)));
        assert!(mine.include(&names(Some(&[]), Some(&["x"]))));
        assert!(!mine.include(&names(Some(&["we"]), None)));
        assert!(!mine.include(&names(None, None)), "any secret");
        assert!(
            !names(None, Some(&["x"])).include(&names(None, None)),
            "any config"
        );
    }

    #[test]
    fn what_gives_power_over_a_node_needs_a_grant() {
        let admin = "/run/mesh/admin.sock";
        for (change, grant) in [
            (
                serde_json::json!({"mounts": [{"type": "bind", "source": admin, "target": "/s"}]}),
                "bind:/run/mesh",
            ),
            (
                serde_json::json!({"capability_add": ["cap_sys_admin"]}),
                "capability:SYS_ADMIN",
            ),
            (
                serde_json::json!({"devices": [{"host_path": "/dev/mem", "container_path": "/dev/mem"}]}),
                "device:/dev/mem",
            ),
        ] {
            let spec = spec("web", |json| {
                for (name, value) in change.as_object().unwrap() {
                    json["task_template"]["container_spec"][name] = value.clone();
                }
            });
            assert!(rules(&[], None).check(&spec).is_err(), "{change}");
            assert!(rules(&[grant], None).check(&spec).is_ok(), "{change}");
        }
        let host = spec("web", |json| {
            json["task_template"]["networks"] = serde_json::json!(["host"]);
        });
        assert!(rules(&[], None).check(&host).is_err());
        assert!(rules(&["host-network"], None).check(&host).is_ok());
        let plain = spec("web", |json| {
            json["task_template"]["networks"] = serde_json::json!(["backend"]);
            json["task_template"]["container_spec"]["mounts"] =
                serde_json::json!([{"type": "volume", "source": "data", "target": "/data"}]);
        });
        assert!(rules(&[], None).check(&plain).is_ok());
    }

    #[test]
    fn only_the_ports_that_are_named_may_be_published() {
        let publishing = |port: Option<&str>| {
            spec("web", |json| {
                json["endpoint_spec"]["ports"] =
                    serde_json::json!([{"target_port": 80, "published_port": port}]);
            })
        };
        let limited = rules(&[], Some(&["443", "8000-8009"]));
        assert!(limited.check(&publishing(Some("443"))).is_ok());
        assert!(limited.check(&publishing(Some("8009"))).is_ok());
        assert!(limited.check(&publishing(Some("8010"))).is_err());
        assert!(
            limited.check(&publishing(None)).is_err(),
            "one that is assigned may be any"
        );
        assert!(rules(&[], None).check(&publishing(None)).is_ok());
        assert!(rules(&[], Some(&[])).check(&publishing(Some("443"))).is_err());
    }

    #[test]
    fn a_token_gives_no_more_than_it_has() {
        let mine = rules(&["bind:/srv"], Some(&["8000-8009"]));
        assert!(mine.include(&rules(&["bind:/srv/a"], Some(&["8001-8002"]))));
        assert!(mine.include(&rules(&[], Some(&[]))));
        assert!(!mine.include(&rules(&["bind:/"], Some(&["8001"]))));
        assert!(!mine.include(&rules(&[], None)), "any port");
        assert!(!mine.include(&rules(&[], Some(&["8009-8010"]))));
        assert!(rules(&[], None).include(&rules(&[], Some(&["1"]))));
    }
}
