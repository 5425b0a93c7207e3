//! The steps that turn one table into another. Pure; imports the rulesets' types only.
//!
//! The order within one transaction: what others refer to is added before them and removed after them.

use std::fmt;

use super::ruleset::{Chain, Content, Family, Rule, Ruleset, Set};

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    /// Adds an empty table.
    AddTable(Family, &'static str),
    /// Deletes a table with everything in it.
    DeleteTable(Family),
    /// Adds a named counter.
    AddCounter(Family, &'a str),
    DeleteCounter(Family, &'a str),
    /// Adds an empty set.
    AddSet(Family, &'static str, &'a Set),
    AddElements(Family, &'static str, Elements<'a>),
    DeleteElements(Family, &'static str, Elements<'a>),
    /// Adds an empty chain.
    AddChain(Family, &'a str, &'a Chain),
    /// Deletes an empty chain.
    DeleteChain(Family, &'a str),
    /// Appends a rule.
    AddRule(Family, &'a str, &'a Rule),
    /// Deletes all rules of a chain.
    Flush(Family, &'a str),
}

impl fmt::Display for Operation<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(family, _) => write!(formatter, "add table {family}"),
            Self::DeleteTable(family) => write!(formatter, "delete table {family}"),
            Self::AddCounter(_, name) => write!(formatter, "add counter {name}"),
            Self::DeleteCounter(_, name) => write!(formatter, "delete counter {name}"),
            Self::AddSet(family, name, _) => write!(formatter, "add set {name} to table {family}"),
            Self::AddElements(_, name, list) => {
                write!(formatter, "add {} elements to set {name}", list.len())
            }
            Self::DeleteElements(_, name, list) => {
                write!(formatter, "delete {} elements of set {name}", list.len())
            }
            Self::AddChain(family, name, _) => write!(formatter, "add chain {name} to table {family}"),
            Self::DeleteChain(_, name) => write!(formatter, "delete chain {name}"),
            Self::AddRule(_, name, rule) => {
                write!(formatter, "add rule `{}` to chain {name}", rule.comment)
            }
            Self::Flush(_, name) => write!(formatter, "flush chain {name}"),
        }
    }
}

/// Keys; in maps, with the chain to go to.
pub(super) type Elements<'a> = Vec<(&'a [u8], Option<&'a str>)>;

/// The steps from one table to another of the same family; `None` stands for no table. Both have the same
/// sets, whose elements may differ.
pub(super) fn difference<'a>(old: Option<&'a Ruleset>, new: &'a Ruleset) -> Vec<Operation<'a>> {
    let family = new.family;
    let old_chain = |name: &str| old.and_then(|old| old.chains.get(name));
    let mut steps = Vec::new();
    if old.is_none() {
        steps.push(Operation::AddTable(family, new.comment));
    }
    for counter in &new.counters {
        if old.is_none_or(|old| !old.counters.contains(counter)) {
            steps.push(Operation::AddCounter(family, counter));
        }
    }
    let mut added = Vec::new();
    for (name, set) in &new.sets {
        let before = old.and_then(|old| old.sets.get(name));
        if before.is_none() {
            steps.push(Operation::AddSet(family, name, set));
        }
        let missing = without(set, before);
        if !missing.is_empty() {
            added.push(Operation::AddElements(family, name, missing));
        }
    }
    for (name, chain) in &new.chains {
        if old_chain(name).is_none() {
            steps.push(Operation::AddChain(family, name, chain));
        }
    }
    // Rules and elements go before the chains and counters that they refer to.
    if let Some(old) = old {
        for (name, chain) in &old.chains {
            if new.chains.get(name) != Some(chain) && !chain.rules.is_empty() {
                steps.push(Operation::Flush(family, name));
            }
        }
        for (name, set) in &old.sets {
            let stale = without(set, new.sets.get(name));
            if !stale.is_empty() {
                steps.push(Operation::DeleteElements(family, name, stale));
            }
        }
    }
    for (name, chain) in &new.chains {
        if old_chain(name) != Some(chain) {
            let rules = chain.rules.iter();
            steps.extend(rules.map(|rule| Operation::AddRule(family, name, rule)));
        }
    }
    steps.append(&mut added);
    if let Some(old) = old {
        let stale = old.chains.keys().filter(|name| !new.chains.contains_key(*name));
        steps.extend(stale.map(|name| Operation::DeleteChain(family, name)));
        let stale = old.counters.iter().filter(|name| !new.counters.contains(*name));
        steps.extend(stale.map(|name| Operation::DeleteCounter(family, name)));
    }
    steps
}

/// The elements that one set has and the other has not.
fn without<'a>(set: &'a Set, other: Option<&Set>) -> Elements<'a> {
    let elements: Elements<'a> = match &set.content {
        Content::Keys(keys) => keys.iter().map(|key| (key.as_slice(), None)).collect(),
        Content::Chains(chains) => chains
            .iter()
            .map(|(key, chain)| (key.as_slice(), Some(chain.as_str())))
            .collect(),
    };
    elements
        .into_iter()
        .filter(|(key, chain)| match other.map(|other| &other.content) {
            None => true,
            Some(Content::Keys(keys)) => !keys.contains(*key),
            Some(Content::Chains(chains)) => chains.get(*key).map(String::as_str) != *chain,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{
        super::{
            ruleset::{Expression, Register, Type},
            target::names,
        },
        *,
    };

    /// A table with some keys and some services, each with its chain, replicas' chains and counters.
    fn table(keys: &[u8], services: &BTreeMap<u8, BTreeSet<u8>>) -> Ruleset {
        let mut ruleset = Ruleset {
            family: Family::Ip,
            comment: "",
            sets: BTreeMap::new(),
            counters: BTreeSet::new(),
            chains: BTreeMap::new(),
        };
        let rule = |expression| Rule {
            comment: "",
            expressions: vec![expression],
        };
        let mut map = BTreeMap::new();
        for (service, replicas) in services {
            let mut chains = Vec::new();
            for replica in replicas {
                let name = format!("replica-{service}-{replica}");
                ruleset.counters.insert(name.clone());
                ruleset.chains.insert(
                    name.clone(),
                    Chain {
                        hook: None,
                        rules: vec![rule(Expression::Count(name.clone()))],
                    },
                );
                chains.push(name);
            }
            let name = format!("service-{service}");
            ruleset.chains.insert(
                name.clone(),
                Chain {
                    hook: None,
                    rules: vec![rule(Expression::Rotate(chains))],
                },
            );
            map.insert(vec![*service], name);
        }
        let set = |content| Set {
            key: &[Type::Port],
            comment: "",
            content,
        };
        let keys = keys.iter().map(|key| vec![*key]).collect();
        ruleset.sets.insert(names::FRONTENDS, set(Content::Keys(keys)));
        ruleset.sets.insert(names::LOCALHOST, set(Content::Chains(map)));
        ruleset
    }

    /// The kernel's table after the steps; panics where the kernel would refuse a step.
    fn applied(old: Option<&Ruleset>, steps: &[Operation<'_>]) -> Ruleset {
        let mut state = old.cloned();
        for step in steps {
            match step {
                Operation::AddTable(family, comment) => {
                    assert!(state.is_none());
                    state = Some(Ruleset {
                        family: *family,
                        comment,
                        sets: BTreeMap::new(),
                        counters: BTreeSet::new(),
                        chains: BTreeMap::new(),
                    });
                }
                Operation::DeleteTable(_) => panic!("a difference deletes no table"),
                Operation::AddCounter(_, name) => {
                    assert!(state.as_mut().unwrap().counters.insert((*name).to_owned()));
                }
                Operation::DeleteCounter(_, name) => {
                    let state = state.as_mut().unwrap();
                    let count = Expression::Count((*name).to_owned());
                    let used = |rule: &Rule| rule.expressions.contains(&count);
                    assert!(!state.chains.values().any(|chain| chain.rules.iter().any(used)));
                    assert!(state.counters.remove(*name));
                }
                Operation::AddSet(_, name, set) => {
                    let content = match set.content {
                        Content::Keys(_) => Content::Keys(BTreeSet::new()),
                        Content::Chains(_) => Content::Chains(BTreeMap::new()),
                    };
                    let set = Set {
                        content,
                        ..(*set).clone()
                    };
                    assert!(state.as_mut().unwrap().sets.insert(name, set).is_none());
                }
                Operation::AddElements(_, name, elements) => {
                    let state = state.as_mut().unwrap();
                    for (key, chain) in elements {
                        assert!(chain.is_none_or(|chain| state.chains.contains_key(chain)));
                        let fresh = match &mut state.sets.get_mut(name).unwrap().content {
                            Content::Keys(keys) => keys.insert(key.to_vec()),
                            Content::Chains(chains) => {
                                chains.insert(key.to_vec(), chain.unwrap().to_owned()).is_none()
                            }
                        };
                        assert!(fresh);
                    }
                }
                Operation::DeleteElements(_, name, elements) => {
                    for (key, _) in elements {
                        assert!(
                            match &mut state.as_mut().unwrap().sets.get_mut(name).unwrap().content {
                                Content::Keys(keys) => keys.remove(*key),
                                Content::Chains(chains) => chains.remove(*key).is_some(),
                            }
                        );
                    }
                }
                Operation::AddChain(_, name, chain) => {
                    let chain = Chain {
                        hook: chain.hook,
                        rules: Vec::new(),
                    };
                    let state = state.as_mut().unwrap();
                    assert!(state.chains.insert((*name).to_owned(), chain).is_none());
                }
                Operation::DeleteChain(_, name) => {
                    let state = state.as_mut().unwrap();
                    assert!(!state.chains.values().any(|chain| chain.leads_to(name)));
                    for set in state.sets.values() {
                        if let Content::Chains(chains) = &set.content {
                            assert!(!chains.values().any(|chain| chain == name));
                        }
                    }
                    assert!(state.chains.remove(*name).unwrap().rules.is_empty());
                }
                Operation::AddRule(_, name, rule) => {
                    let state = state.as_mut().unwrap();
                    for expression in &rule.expressions {
                        if let Expression::Rotate(chains) = expression {
                            assert!(chains.iter().all(|chain| state.chains.contains_key(chain)));
                        }
                        if let Expression::Count(counter) = expression {
                            assert!(state.counters.contains(counter));
                        }
                    }
                    state.chains.get_mut(*name).unwrap().rules.push((*rule).clone());
                }
                Operation::Flush(_, name) => {
                    state
                        .as_mut()
                        .unwrap()
                        .chains
                        .get_mut(*name)
                        .unwrap()
                        .rules
                        .clear();
                }
            }
        }
        state.unwrap()
    }

    fn services() -> impl Strategy<Value = BTreeMap<u8, BTreeSet<u8>>> {
        proptest::collection::btree_map(0..4_u8, proptest::collection::btree_set(0..4_u8, 0..4), 0..4)
    }

    proptest! {
        #[test]
        fn any_table_becomes_any_other_by_steps_that_the_kernel_accepts(
            old_keys: Vec<u8>, new_keys: Vec<u8>, old_services in services(), new_services in services(),
        ) {
            let old = table(&old_keys, &old_services);
            let new = table(&new_keys, &new_services);
            prop_assert_eq!(&applied(None, &difference(None, &new)), &new);
            prop_assert_eq!(&applied(Some(&old), &difference(Some(&old), &new)), &new);
            prop_assert!(difference(Some(&new), &new).is_empty());
        }
    }

    #[test]
    fn one_more_key_is_one_step() {
        let old = table(&[1, 2], &BTreeMap::new());
        let new = table(&[1, 2, 3], &BTreeMap::new());
        let steps = difference(Some(&old), &new);
        let expected = Operation::AddElements(Family::Ip, names::FRONTENDS, vec![(&[3], None)]);
        assert_eq!(steps, [expected]);
    }

    #[test]
    fn a_changed_rule_replaces_only_the_rules_of_its_chain() {
        let mut old = table(&[1], &BTreeMap::from([(1, BTreeSet::from([1, 2]))]));
        let new = old.clone();
        let chain = old.chains.get_mut("service-1").unwrap();
        chain.rules[0]
            .expressions
            .push(Expression::Mask(Register::First, vec![1]));
        let steps = difference(Some(&old), &new);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0], Operation::Flush(Family::Ip, "service-1"));
        assert!(matches!(steps[1], Operation::AddRule(_, "service-1", _)));
    }
}
