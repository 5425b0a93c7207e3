//! What of the host's own firewall, and of the labels on who may come in, an operator has to know: from the
//! agent's view. Pure.

use std::sync::Arc;

use super::View;
use crate::model::ServiceKey;

/// The published ports that are left to Docker's own mesh, and the rule because of which they are; a line
/// each.
#[must_use]
pub(crate) fn inexpressible_rules(view: &View) -> Vec<String> {
    let line = |(key, rule): (&ServiceKey, &Arc<str>)| {
        let service = view.desired.services.get(key);
        let name = service.map_or("a service", |service| &service.name);
        format!("{name} ({key}) is {}", left_by(rule))
    };
    view.desired.inexpressible.iter().map(line).collect()
}

/// What has become of a port because of a rule or a label that the data path cannot keep.
pub(crate) fn left_by(rule: &str) -> String {
    format!("left to Docker's own mesh: this data path cannot tell who may come in by {rule}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::{routes::routes, view::fixture},
        model::{Desired, Protocol},
    };

    #[test]
    fn a_port_that_a_rule_leaves_to_docker_is_named_with_the_rule() {
        let (mut view, counters) = fixture::two_nodes();
        assert_eq!(inexpressible_rules(&view), [""; 0]);
        let key = ServiceKey {
            protocol: Protocol::Tcp,
            port: 9200,
        };
        let mut desired = Desired::clone(&view.desired);
        desired
            .inexpressible
            .insert(key, "-A DOCKER-USER -m set -j DROP".into());
        view.desired = Arc::new(desired);
        assert_eq!(
            inexpressible_rules(&view),
            [
                "web (tcp/9200) is left to Docker's own mesh: this data path cannot tell who may come in by \
                 -A DOCKER-USER -m set -j DROP"
            ]
        );
        let routes = routes(&view, &counters);
        assert!(routes.notices.iter().any(|notice| notice.contains("-m set")));
        let route = routes.routes.iter().find(|route| route.port == 9200).unwrap();
        assert!(route.reason.contains("-m set"), "{}", route.reason);
    }
}
