//! Whether a set of services can be started at all: `depends_on` must not form a cycle.

use std::collections::{BTreeMap, BTreeSet};

use super::SpecError;

/// Checks that no service depends on itself, directly or through others. `depends_on` lists the dependencies
/// of each service by name; names of services that do not exist are ignored.
///
/// # Errors
/// If there is a cycle. The error names its services in order.
pub fn check_dependencies<'a>(depends_on: &BTreeMap<&'a str, Vec<&'a str>>) -> Result<(), SpecError> {
    let mut finished = BTreeSet::new();
    for name in depends_on.keys() {
        // Depth first without recursion: a chain may include all services.
        let mut path = vec![(*name, 0)];
        let mut on_path = BTreeSet::from([*name]);
        while let Some((current, next)) = path.last_mut() {
            let current = *current;
            let dependency = depends_on
                .get(current)
                .and_then(|names| names.get(*next))
                .copied();
            *next += 1;
            match dependency {
                None => {
                    finished.insert(current);
                    on_path.remove(current);
                    path.pop();
                }
                Some(dependency) if on_path.contains(dependency) => {
                    let start = path.iter().position(|(name, _)| *name == dependency).unwrap_or(0);
                    let mut cycle: Vec<String> =
                        path[start..].iter().map(|(name, _)| (*name).into()).collect();
                    cycle.push(dependency.into());
                    return Err(SpecError::DependencyCycle { cycle });
                }
                Some(dependency) if finished.contains(dependency) => {}
                Some(dependency) => {
                    on_path.insert(dependency);
                    path.push((dependency, 0));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_error_names_the_cycle() {
        let services = BTreeMap::from([
            ("web", vec!["cache", "db"]),
            ("db", vec!["vault"]),
            ("vault", vec!["web"]),
        ]);
        let error = check_dependencies(&services).unwrap_err().to_string();
        assert!(error.contains("db -> vault -> web -> db"), "{error}");
        assert!(check_dependencies(&BTreeMap::from([("a", vec!["a"])])).is_err());
    }

    proptest! {
        #[test]
        fn dependencies_on_earlier_services_only_form_no_cycle(edges in proptest::collection::vec((1_usize..40, 0_usize..40), 0..200)) {
            let names: Vec<String> = (0..40).map(|index| format!("s{index}")).collect();
            let mut services: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (from, to) in edges {
                services.entry(&names[from]).or_default().push(&names[to % from]);
            }
            prop_assert!(check_dependencies(&services).is_ok());
            // One edge back to the start closes a cycle.
            if let Some((from, to)) = services.iter().find_map(|(from, to)| Some((*from, *to.first()?))) {
                services.entry(to).or_default().push(from);
                prop_assert!(check_dependencies(&services).is_err());
            }
        }
    }
}
