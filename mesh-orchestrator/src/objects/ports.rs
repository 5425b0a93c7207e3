//! Assigns published ports: in order from 30000 to 32767, and the same port again to a service that had it
//! before.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{Protocol, PublishMode, ServiceSpec, SpecError};

/// First port of the range for ports that a specification leaves out.
pub const FIRST_PORT: u16 = 30_000;
/// Last port of that range.
pub const LAST_PORT: u16 = 32_767;

/// A published port and the port in the container that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the container.
    pub target_port: u16,
    /// Port on the nodes.
    pub published_port: u16,
    /// Which nodes answer.
    pub publish_mode: PublishMode,
}

/// Which port was assigned to which service. Entries outlive the service, so that a service of the same name
/// gets the same ports again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortLedger {
    /// Where the search for the next free port starts.
    next: u16,
    /// Ports by `<service name>/<target port>/<protocol>`; at most as many as the range has.
    given: BTreeMap<String, u16>,
}

impl Default for PortLedger {
    fn default() -> Self {
        Self {
            next: FIRST_PORT,
            given: BTreeMap::new(),
        }
    }
}

impl PortLedger {
    /// Assigns all ports of a specification. `holder` returns the name of the service that publishes a port
    /// in ingress mode; the service's own ports count as free.
    ///
    /// # Errors
    /// If another service publishes a requested port, or no port is free.
    pub fn allocate<'a>(
        &mut self,
        spec: &ServiceSpec,
        holder: impl Fn(Protocol, u16) -> Option<&'a str>,
    ) -> Result<Vec<EndpointPort>, SpecError> {
        let is_free = |protocol, port| holder(protocol, port).is_none_or(|name| name == spec.name);
        let wanted: Vec<_> = spec
            .endpoint_spec
            .ports
            .iter()
            .enumerate()
            .flat_map(|(index, config)| config.pairs().map(move |pair| (index, config, pair)))
            .collect();
        let mut ports: Vec<EndpointPort> = Vec::with_capacity(wanted.len());
        // The requested ports first, so that none of them is assigned to another port of the same service.
        for (index, config, (target_port, published)) in &wanted {
            let Some(published_port) = *published else {
                continue;
            };
            let is_ingress = config.publish_mode == PublishMode::Ingress;
            if let Some(name) =
                holder(config.protocol, published_port).filter(|name| is_ingress && *name != spec.name)
            {
                return Err(SpecError::invalid(
                    format!("endpoint_spec.ports[{index}].published_port"),
                    published_port,
                    format!("another port: service {name} already publishes this one"),
                ));
            }
            ports.push(EndpointPort {
                protocol: config.protocol,
                target_port: *target_port,
                published_port,
                publish_mode: config.publish_mode,
            });
        }
        for (index, config, (target_port, published)) in wanted {
            if published.is_some() {
                continue;
            }
            let key = format!("{}/{target_port}/{}", spec.name, config.protocol);
            let taken = |port| {
                !is_free(config.protocol, port)
                    || ports
                        .iter()
                        .any(|other| other.protocol == config.protocol && other.published_port == port)
            };
            let published_port = self
                .given
                .get(&key)
                .copied()
                .filter(|port| !taken(*port))
                .or_else(|| self.search(config.protocol, taken));
            let Some(published_port) = published_port else {
                return Err(SpecError::invalid(
                    format!("endpoint_spec.ports[{index}].published_port"),
                    "",
                    format!("a port outside {FIRST_PORT} to {LAST_PORT}: all ports of this range are in use"),
                ));
            };
            // A service that had this port before no longer gets it back.
            let protocol = format!("/{}", config.protocol);
            self.given
                .retain(|other, port| *port != published_port || !other.ends_with(&protocol));
            self.given.insert(key, published_port);
            ports.push(EndpointPort {
                protocol: config.protocol,
                target_port,
                published_port,
                publish_mode: PublishMode::Ingress,
            });
        }
        ports.sort();
        Ok(ports)
    }

    /// The next free port in order; a port that is remembered for a removed service only if no other is free.
    fn search(&mut self, protocol: Protocol, taken: impl Fn(u16) -> bool) -> Option<u16> {
        let suffix = format!("/{protocol}");
        let remembered: std::collections::BTreeSet<u16> = self
            .given
            .iter()
            .filter(|(key, _)| key.ends_with(&suffix))
            .map(|(_, port)| *port)
            .collect();
        let order = || (self.next..=LAST_PORT).chain(FIRST_PORT..self.next);
        let port = order()
            .find(|port| !taken(*port) && !remembered.contains(port))
            .or_else(|| order().find(|port| !taken(*port)))?;
        self.next = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(name: &str, ports: &str) -> ServiceSpec {
        let json = format!(
            r#"{{"name":"{name}","task_template":{{"container_spec":{{"image":"a"}}}},"endpoint_spec":{{"ports":[{ports}]}}}}"#
        );
        ServiceSpec::from_json(json.as_bytes()).unwrap()
    }

    fn published(ports: &[EndpointPort]) -> Vec<u16> {
        ports.iter().map(|port| port.published_port).collect()
    }

    #[test]
    fn a_port_is_sticky_by_service_name_and_target_port() {
        let mut ledger = PortLedger::default();
        let web = spec("web", r#"{"target_port":80},{"target_port":443}"#);
        assert_eq!(
            published(&ledger.allocate(&web, |_, _| None).unwrap()),
            [30000, 30001]
        );
        let other = spec("other", r#"{"target_port":80}"#);
        assert_eq!(published(&ledger.allocate(&other, |_, _| None).unwrap()), [30002]);
        assert_eq!(
            published(&ledger.allocate(&web, |_, _| None).unwrap()),
            [30000, 30001]
        );
    }

    #[test]
    fn the_search_wraps_and_remembered_ports_are_used_last() {
        let mut ledger = PortLedger {
            next: LAST_PORT,
            given: BTreeMap::from([("gone/80/tcp".into(), FIRST_PORT)]),
        };
        let range = spec("web", r#"{"target_port":"80-82"}"#);
        assert_eq!(
            published(&ledger.allocate(&range, |_, _| None).unwrap()),
            [LAST_PORT, 30001, 30002]
        );
        let mut last = PortLedger::default();
        let free = |_, port| (port != FIRST_PORT).then_some("others");
        last.given.insert("gone/80/tcp".into(), FIRST_PORT);
        assert_eq!(
            published(
                &last
                    .allocate(&spec("web", r#"{"target_port":80}"#), free)
                    .unwrap()
            ),
            [FIRST_PORT]
        );
        assert!(!last.given.contains_key("gone/80/tcp"));
    }

    #[test]
    fn a_clash_names_the_other_service() {
        let error = PortLedger::default()
            .allocate(
                &spec("web", r#"{"target_port":80,"published_port":8080}"#),
                |_, port| (port == 8080).then_some("shop"),
            )
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"8080\"") && error.contains("service shop"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_two_services_share_a_port(wanted in proptest::collection::vec((0_usize..6, 1_u16..5), 1..40)) {
            let mut ledger = PortLedger::default();
            let mut held: BTreeMap<u16, String> = BTreeMap::new();
            for (service, target) in wanted {
                let name = format!("s{service}");
                let spec = spec(&name, &format!(r#"{{"target_port":{target}}},{{"target_port":{}}}"#, target + 10));
                let ports = ledger.allocate(&spec, |_, port| held.get(&port).map(String::as_str)).unwrap();
                held.retain(|_, holder| *holder != name);
                for port in ports {
                    prop_assert_eq!(held.insert(port.published_port, name.clone()), None);
                }
            }
        }
    }
}
