//! `stack ls`: docker's columns. Pure.

use std::collections::BTreeMap;

use mesh_orchestrator::api::types::ServiceView;
use serde_json::Value;

use crate::meshctl::output::{Layout, people::natural};

/// The label that says which stack a service, secret or config belongs to.
pub(crate) const NAMESPACE: &str = "com.docker.stack.namespace";

/// Docker's fields and columns.
pub(crate) const LAYOUT: Layout = Layout {
    fields: &[("Name", "NAME"), ("Services", "SERVICES")],
    table: r"{{.Name}}\t{{.Services}}",
    quiet: "{{.Name}}",
    raw: &[],
};

/// One row for each stack that has a service, by name.
pub(crate) fn rows(services: &[ServiceView]) -> Vec<Value> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for stack in services
        .iter()
        .filter_map(|service| service.spec.labels.get(NAMESPACE))
    {
        *counts.entry(stack).or_default() += 1;
    }
    let mut stacks: Vec<(&str, u32)> = counts.into_iter().collect();
    stacks.sort_by(|(left, _), (right, _)| natural(left, right));
    stacks
        .into_iter()
        .map(|(name, services)| LAYOUT.row([name.into(), services.to_string().into()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::{
        output::Format,
        views::testing::{service, spec_of},
    };

    #[test]
    fn stacks_are_counted_and_sorted_by_number() {
        let in_stack = |stack: &str| {
            let mut view = service("a");
            spec_of(&mut view).labels.insert(NAMESPACE.into(), stack.into());
            view
        };
        let services = [
            in_stack("foo-10"),
            in_stack("foo-2"),
            in_stack("foo-10"),
            service("alone"),
        ];
        assert_eq!(
            LAYOUT.render(&rows(&services), &Format::Table, false).unwrap(),
            "NAME      SERVICES\nfoo-2     1\nfoo-10    2\n"
        );
    }
}
