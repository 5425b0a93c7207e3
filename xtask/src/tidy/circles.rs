//! No modules import each other in a circle: each can be read, and changed, without the ones that use it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Rule, Violation,
    modules::{Modules, Use},
};

pub(super) fn check(modules: &Modules<'_>) -> Vec<Violation> {
    let uses = modules.uses();
    let mut targets: BTreeMap<usize, Vec<&Use>> = BTreeMap::new();
    for used in &uses {
        targets.entry(used.from).or_default().push(used);
    }
    let mut reported = BTreeSet::new();
    let mut found = Vec::new();
    for from in targets.keys() {
        if reported.contains(from) {
            continue;
        }
        let Some(circle) = shortest_circle(*from, &targets) else {
            continue;
        };
        reported.extend(circle.iter().map(|used| used.from));
        let name = |at: usize| modules.all[at].path.join("::");
        let way: Vec<String> = circle.iter().map(|used| name(used.from)).collect();
        found.push(modules.all[*from].source.violation(
            circle[0].line,
            Rule::Circles,
            format!(
                "modules import each other: {} -> {}; move what both need to a module below them",
                way.join(" -> "),
                name(*from)
            ),
        ));
    }
    found
}

/// The shortest way from a module back to itself.
fn shortest_circle<'u>(start: usize, targets: &BTreeMap<usize, Vec<&'u Use>>) -> Option<Vec<&'u Use>> {
    let mut reached_by: BTreeMap<usize, &Use> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(at) = waiting.pop_front() {
        for used in targets.get(&at).into_iter().flatten() {
            if reached_by.contains_key(&used.to) {
                continue;
            }
            reached_by.insert(used.to, used);
            if used.to == start {
                return Some(way_back(start, &reached_by));
            }
            waiting.push_back(used.to);
        }
    }
    None
}

fn way_back<'u>(start: usize, reached_by: &BTreeMap<usize, &'u Use>) -> Vec<&'u Use> {
    let mut way = VecDeque::new();
    let mut at = start;
    while let Some(used) = reached_by.get(&at) {
        way.push_front(*used);
        at = used.from;
        if at == start {
            break;
        }
    }
    way.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::modules::tests::{modules, sources};

    #[test]
    fn a_circle_is_reported_once_with_its_modules() {
        let sources = sources(&[
            ("a/src/lib.rs", ""),
            ("a/src/b.rs", "\nuse crate::c::X;"),
            ("a/src/c.rs", "use crate::d::Y;"),
            ("a/src/d.rs", "use crate::b::Z; use crate::e::V;"),
            ("a/src/e.rs", "use crate::f::W;"),
            ("a/src/f.rs", ""),
        ]);
        let found = check(&modules(&sources));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].path.as_str(), found[0].line), ("a/src/b.rs", 2));
        assert!(found[0].message.contains("b -> c -> d -> b"), "{found:?}");
    }
}
