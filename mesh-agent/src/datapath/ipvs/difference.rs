//! The commands that turn one IPVS table into another, in two halves: first additions, then removals. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    kernel::{Command, Destination, Settings, VirtualService},
    wanted::Table,
};

/// A virtual service as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    /// Its scheduler and persistence.
    pub(super) settings: Settings,
    /// Its destinations, with weights.
    pub(super) destinations: BTreeMap<Destination, u32>,
}

/// The mesh's virtual services in the kernel.
pub(super) type PresentTable = BTreeMap<VirtualService, Present>;

/// Adds what is missing and changes what differs. A new virtual service is directly followed by its
/// destinations; weights of 0 come last, after the destinations that take over.
pub(super) fn additions(present: &PresentTable, wanted: &Table) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, service) in wanted {
        let found = present.get(name);
        match found {
            None => commands.push(Command::NewService(*name, service.settings.clone())),
            Some(found) if found.settings != service.settings => {
                commands.push(Command::SetService(*name, service.settings.clone()));
            }
            Some(_) => {}
        }
        let mut last = Vec::new();
        for (destination, wanted) in &service.destinations {
            match found.and_then(|found| found.destinations.get(destination)) {
                None => commands.push(Command::NewDestination(*name, *destination, wanted.weight)),
                Some(weight) if *weight == wanted.weight => {}
                Some(_) if wanted.weight == 0 => last.push(Command::SetDestination(*name, *destination, 0)),
                Some(_) => commands.push(Command::SetDestination(*name, *destination, wanted.weight)),
            }
        }
        commands.append(&mut last);
    }
    commands
}

/// Removes what is not wanted, except services that are `kept`.
pub(super) fn removals(
    present: &PresentTable,
    wanted: &Table,
    kept: &BTreeSet<VirtualService>,
) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, found) in present {
        match wanted.get(name) {
            None if kept.contains(name) => {}
            None => commands.push(Command::RemoveService(*name)),
            Some(service) => commands.extend(
                found
                    .destinations
                    .keys()
                    .filter(|destination| !service.destinations.contains_key(destination))
                    .map(|destination| Command::RemoveDestination(*name, *destination)),
            ),
        }
    }
    commands
}

/// Applies to a table what a command has changed in the kernel.
pub(super) fn record(present: &mut PresentTable, command: &Command) {
    match command {
        Command::NewService(name, settings) => {
            let service = Present {
                settings: settings.clone(),
                destinations: BTreeMap::new(),
            };
            present.insert(*name, service);
        }
        Command::SetService(name, settings) => {
            if let Some(service) = present.get_mut(name) {
                service.settings = settings.clone();
            }
        }
        Command::RemoveService(name) => drop(present.remove(name)),
        Command::NewDestination(name, destination, weight)
        | Command::SetDestination(name, destination, weight) => {
            if let Some(service) = present.get_mut(name) {
                service.destinations.insert(*destination, *weight);
            }
        }
        Command::RemoveDestination(name, destination) => {
            if let Some(service) = present.get_mut(name) {
                service.destinations.remove(destination);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        datapath::ipvs::{
            kernel::SchedulerFlags,
            wanted::{Role, WantedDestination, WantedService},
        },
        model::{BackendKey, Protocol, ServiceKey},
    };

    const KEY: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    prop_compose! {
        fn settings()(scheduler in "rr|wrr", persistence in prop::option::of(1_u32..3)) -> Settings {
            Settings { scheduler, persistence, flags: SchedulerFlags { third: true, ..SchedulerFlags::default() } }
        }
    }

    fn table() -> impl Strategy<Value = Table> {
        let destinations = prop::collection::btree_map(1_u8..6, 0_u32..3, 0..5);
        prop::collection::btree_map(1_u8..5, (settings(), destinations), 0..4).prop_map(|services| {
            services
                .into_iter()
                .map(|(last, (settings, destinations))| {
                    let name = VirtualService {
                        address: address(last),
                        port: 9200,
                        protocol: Protocol::Tcp,
                    };
                    let destinations = destinations
                        .into_iter()
                        .map(|(last, weight)| {
                            let backend = BackendKey {
                                service: KEY,
                                address: Ipv4Addr::new(10, 0, 0, last),
                            };
                            let destination = Destination {
                                address: address(last),
                                port: 80,
                            };
                            (destination, WantedDestination { backend, weight })
                        })
                        .collect();
                    let service = WantedService {
                        settings,
                        destinations,
                        role: Role::Frontend(KEY),
                    };
                    (name, service)
                })
                .collect()
        })
    }

    fn present(table: &Table) -> PresentTable {
        table
            .iter()
            .map(|(name, service)| {
                let destinations = service
                    .destinations
                    .iter()
                    .map(|(destination, wanted)| (*destination, wanted.weight))
                    .collect();
                let settings = service.settings.clone();
                (
                    *name,
                    Present {
                        settings,
                        destinations,
                    },
                )
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_commands_turn_one_table_into_the_other(old in table(), new in table()) {
            let mut kernel = present(&old);
            for command in additions(&kernel, &new) {
                record(&mut kernel, &command);
            }
            for command in removals(&kernel, &new, &BTreeSet::new()) {
                record(&mut kernel, &command);
            }
            prop_assert_eq!(kernel, present(&new));
        }

        #[test]
        fn an_unchanged_table_needs_no_command(table in table()) {
            let kernel = present(&table);
            prop_assert_eq!(additions(&kernel, &table), vec![]);
            prop_assert_eq!(removals(&kernel, &table, &BTreeSet::new()), vec![]);
        }

        #[test]
        fn additions_remove_nothing(old in table(), new in table()) {
            let mut kernel = present(&old);
            for command in additions(&kernel, &new) {
                record(&mut kernel, &command);
            }
            for (name, service) in present(&old) {
                for destination in service.destinations.keys() {
                    prop_assert!(kernel[&name].destinations.contains_key(destination));
                }
            }
        }

        #[test]
        fn kept_services_stay(old in table()) {
            let kernel = present(&old);
            let kept = kernel.keys().copied().collect();
            prop_assert_eq!(removals(&kernel, &Table::new(), &kept), vec![]);
        }
    }
}
