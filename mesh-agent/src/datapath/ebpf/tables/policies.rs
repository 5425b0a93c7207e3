//! The source rules of services, in the maps. Part of [`Tables`].
//!
//! A policy is never changed: another one gets another id, the service is pointed at it in one write, and the
//! rules of the one before are removed a round later, when no packet reads them any more. Services of equal
//! policies share one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use aya::maps::lpm_trie::Key;
use mesh_ebpf::{
    abi::{self, Policy, SourceRule},
    bytes::Be32,
};

use super::{Maps, Tables, removed};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::{Ingress, Prefix, ServiceKey, SourcePolicy, SourceVerdict, SourceVerdicts},
};

/// Who may come in to a service, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Access {
    /// Who may; `None` for everyone.
    pub(in super::super) policy: Option<Arc<SourcePolicy>>,
    /// The addresses at which no one may.
    pub(in super::super) closed: BTreeSet<Ipv4Addr>,
}

/// The policies in the maps, by id.
#[derive(Default)]
pub(super) struct Policies {
    held: BTreeMap<u16, Arc<SourcePolicy>>,
    /// Those that no service had at the end of the last round.
    unused: Vec<u16>,
}

impl Policies {
    /// Reads what an earlier agent left.
    pub(super) fn adopt(maps: &Maps) -> Result<Self, DatapathError> {
        let mut entries = BTreeMap::<u16, Vec<(Ingress, Prefix, SourceVerdicts)>>::new();
        for entry in maps.source_rules.iter() {
            let (key, verdicts) = entry.map_err(|error| failed("read the pinned map SOURCE_RULES", error))?;
            let (id, ingress, prefix) = rule(&key);
            entries
                .entry(id)
                .or_default()
                .push((ingress, prefix, model(verdicts)));
        }
        let held = entries
            .into_iter()
            .map(|(id, entries)| (id, Arc::new(SourcePolicy::of_entries(entries))))
            .collect();
        Ok(Self {
            held,
            unused: Vec::new(),
        })
    }

    /// How many rules they have.
    pub(super) fn rules(&self) -> usize {
        self.held.values().map(|policy| policy.len()).sum()
    }

    /// The id of a policy, which is written if it is new.
    pub(super) fn hold(
        &mut self,
        maps: &mut Maps,
        policy: Option<&Arc<SourcePolicy>>,
    ) -> Result<Policy, DatapathError> {
        let Some(policy) = policy else {
            return Ok(Policy::NONE);
        };
        let by_interface = policy.is_by_interface();
        if let Some((id, _)) = self.held.iter().find(|(_, held)| *held == policy) {
            return Ok(Policy::new(*id, by_interface));
        }
        let id = (1..=Policy::MAX_ID)
            .find(|id| !self.held.contains_key(id))
            .ok_or_else(|| failed("write source rules", "all ids of policies are in use"))?;
        // Held from now on, so that what is written before a failure is removed as well.
        self.held.insert(id, Arc::clone(policy));
        for (ingress, prefix, verdicts) in policy.entries() {
            maps.source_rules
                .insert(&key(id, ingress, prefix), abi_verdicts(verdicts), 0)
                .map_err(|error| failed(format!("write the source rule for {prefix}"), error))?;
        }
        Ok(Policy::new(id, by_interface))
    }

    fn remove(&mut self, maps: &mut Maps, id: u16) -> Result<(), DatapathError> {
        if let Some(policy) = self.held.get(&id) {
            for (ingress, prefix, _) in policy.entries() {
                removed(
                    maps.source_rules.remove(&key(id, ingress, prefix)),
                    "SOURCE_RULES",
                )?;
            }
        }
        self.held.remove(&id);
        Ok(())
    }
}

impl Tables {
    /// Removes the policies that no service has had for a round.
    pub(super) fn settle_policies(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        let used = |id| {
            let mut services = self.services.values();
            services.any(|service| service.policy.id() == id || service.written_policy.id() == id)
        };
        let unused: Vec<u16> = self
            .policies
            .held
            .keys()
            .copied()
            .filter(|id| !used(*id))
            .collect();
        let before = std::mem::replace(&mut self.policies.unused, unused.clone());
        unused
            .into_iter()
            .filter(|id| before.contains(id))
            .try_for_each(|id| self.policies.remove(maps, id))
    }

    /// The access in force to each service that does not let everyone in everywhere.
    pub(in super::super) fn access_in_force(&self) -> BTreeMap<ServiceKey, Access> {
        self.services
            .iter()
            .map(|(key, service)| {
                let policy = self.policies.held.get(&service.written_policy.id());
                let access = Access {
                    policy: policy.cloned(),
                    closed: service.closed.clone(),
                };
                (*key, access)
            })
            .filter(|(_, access)| *access != Access::default())
            .collect()
    }
}

/// What the rules of a policy's id say, if it has any; read from the map.
pub(in super::super) fn policies(maps: &Maps) -> Result<BTreeMap<u16, SourcePolicy>, DatapathError> {
    let policies = Policies::adopt(maps)?.held;
    Ok(policies
        .into_iter()
        .map(|(id, policy)| (id, Arc::unwrap_or_clone(policy)))
        .collect())
}

fn key(id: u16, ingress: Ingress, prefix: Prefix) -> Key<SourceRule> {
    let interface = match ingress {
        Ingress::Any => 0,
        Ingress::Uplink(index) => index,
        Ingress::Containers => SourceRule::CONTAINERS,
    };
    let bits = prefix.address().to_bits();
    let part = |number: u32| Be32::new((bits >> (96 - 32 * number)) as u32);
    let rule = SourceRule {
        policy: u32::from(id),
        interface,
        padding: 0,
        source: [part(0), part(1), part(2), part(3)],
    };
    Key::new(SourceRule::POLICY_BITS + u32::from(prefix.length()), rule)
}

/// What an entry's key means.
fn rule(key: &Key<SourceRule>) -> (u16, Ingress, Prefix) {
    let rule = key.data();
    let ingress = match rule.interface {
        0 => Ingress::Any,
        SourceRule::CONTAINERS => Ingress::Containers,
        index => Ingress::Uplink(index),
    };
    let address = rule
        .source
        .iter()
        .fold(0_u128, |bits, part| bits << 32 | u128::from(part.get()));
    let length = key.prefix_len().saturating_sub(SourceRule::POLICY_BITS);
    (
        rule.policy as u16,
        ingress,
        Prefix::of(address.into(), length as u8),
    )
}

fn abi_verdicts(SourceVerdicts { opening, open }: SourceVerdicts) -> abi::SourceVerdicts {
    let verdict = |verdict| match verdict {
        SourceVerdict::Accept => abi::SourceVerdict::ACCEPT,
        SourceVerdict::Reject => abi::SourceVerdict::REJECT,
        SourceVerdict::Drop => abi::SourceVerdict::DROP,
    };
    abi::SourceVerdicts::new(verdict(opening), verdict(open))
}

fn model(verdicts: abi::SourceVerdicts) -> SourceVerdicts {
    let verdict = |verdict| match verdict {
        abi::SourceVerdict::ACCEPT => SourceVerdict::Accept,
        abi::SourceVerdict::REJECT => SourceVerdict::Reject,
        _ => SourceVerdict::Drop,
    };
    SourceVerdicts {
        opening: verdict(verdicts.opening()),
        open: verdict(verdicts.open()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        for (ingress, prefix) in [
            (Ingress::Any, "0.0.0.0/0"),
            (Ingress::Uplink(7), "192.0.2.128/25"),
            (Ingress::Containers, "2001:db8:1:2::/64"),
        ] {
            let prefix: Prefix = prefix.parse().unwrap();
            let written = key(9, ingress, prefix);
            assert_eq!(rule(&written), (9, ingress, prefix));
        }
        let one = key(1, Ingress::Any, "192.0.2.7".parse().unwrap());
        assert_eq!(one.prefix_len(), SourceRule::BITS);
        assert_eq!(
            one.data().source,
            abi::Ipv6Address::of_ipv4(std::net::Ipv4Addr::new(192, 0, 2, 7).into()).0
        );
        let verdicts = SourceVerdicts {
            opening: SourceVerdict::Reject,
            open: SourceVerdict::Drop,
        };
        assert_eq!(model(abi_verdicts(verdicts)), verdicts);
    }
}
