//! The label that says where a service's ports are published. Pure.

use super::{LabelError, node_condition::condition};
use crate::{docker::api::Labels, model::PublishOn};

/// Addresses, prefixes, interfaces and conditions on nodes.
const PUBLISH_ON: &str = "mesh.publish-on";
/// The kernel's limit for an interface name.
const INTERFACE_NAME_BYTES: usize = 15;

/// Where a service's label publishes it, and what of the label is invalid.
pub(super) fn publish_on(name: &str, labels: &Labels) -> (PublishOn, Vec<LabelError>) {
    let mut errors = Vec::new();
    let mut found = PublishOn::default();
    let value = labels.get(PUBLISH_ON).map_or("", String::as_str);
    let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    for entry in entries {
        if entry.starts_with("node.") || entry.contains('=') {
            match condition(entry) {
                Some(condition) => found.nodes.push(condition),
                None => errors.push((
                    entry,
                    "node.labels.NAME==VALUE, or node.id, .hostname or .role, with == or !=",
                )),
            }
        } else if let Ok(prefix) = entry.parse() {
            found.addresses.push(prefix);
        } else if is_interface(entry) {
            found.interfaces.push(entry.to_owned());
        } else {
            errors.push((
                entry,
                "an address, a prefix, an interface or a condition like node.labels.edge==true",
            ));
        }
    }
    let errors = errors
        .into_iter()
        .map(|(entry, expected)| LabelError::of_service(name, PUBLISH_ON, entry, expected, "the others"));
    (found, errors.collect())
}

/// What looks like the beginning of an address is a misspelt one.
fn is_interface(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    let looks_like_an_address = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.len() <= INTERFACE_NAME_BYTES && text.bytes().all(allowed) && !looks_like_an_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> (PublishOn, Vec<String>) {
        let labels = [(PUBLISH_ON.to_owned(), value.to_owned())].into();
        let (publish_on, errors) = publish_on("web", &labels);
        (publish_on, errors.iter().map(LabelError::to_string).collect())
    }

    #[test]
    fn entries_of_each_kind_are_distinguished() {
        let text =
            "10.0.0.0/8, 192.0.2.7,2001:db8::/32,eth1,wg-0.7,node.labels.edge==true, node.role != manager";
        let (publish_on, errors) = of(text);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(
            publish_on.to_string(),
            "10.0.0.0/8,192.0.2.7/32,2001:db8::/32,eth1,wg-0.7,node.labels.edge==true,node.role!=manager"
        );
        assert_eq!((publish_on.addresses.len(), publish_on.interfaces.len()), (3, 2));
        assert_eq!(of(""), (PublishOn::default(), vec![]));
    }

    #[test]
    fn what_is_none_of_them_is_reported_and_the_others_hold() {
        for entry in [
            "10.0.0.0/33",
            "10.0.0",
            "an-interface-too-long",
            "eth0:1",
            "node.labels.==x",
            "node.labels.edge",
            "node.labels.edge=true",
            "node.platform.os==linux",
            "edge==true",
            "node.role==",
        ] {
            let (publish_on, errors) = of(&format!("{entry},eth1"));
            assert_eq!(publish_on.to_string(), "eth1", "{entry}");
            assert_eq!(errors.len(), 1, "{entry}");
            let start = format!("label mesh.publish-on={entry} of service web: expected ");
            assert!(
                errors[0].starts_with(&start) && errors[0].ends_with("; using the others"),
                "{errors:?}"
            );
        }
    }
}
