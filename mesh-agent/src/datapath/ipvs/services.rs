//! The mesh's virtual services in the kernel: brings them to a wanted table, and counts their traffic.
//! Never touches a virtual service that does not carry the mesh's mark.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use nix::errno::Errno;

use super::{
    accounts::{Accounts, Position, open_connections},
    connections,
    difference::{Present, PresentTable, additions, record, removals},
    failed,
    kernel::{Command, Destination, DestinationState, Ipvs, IpvsError, Statistics, VirtualService},
    wanted::{Role, Table, is_ours},
};
use crate::{
    datapath::{
        Counters, DatapathError,
        dump::{DumpedDestination, DumpedVirtualService},
        flow_list::{Ingress, ListedFlow},
        netlink::KernelError,
    },
    model::{BackendKey, Desired, ServiceKey},
};

/// What is in the kernel, and what it has counted.
pub(super) struct Services {
    ipvs: Ipvs,
    present: PresentTable,
    /// What an earlier agent left and nothing has asked for yet.
    unclaimed: BTreeSet<VirtualService>,
    /// Destinations that an earlier agent left: their earlier traffic counts too.
    inherited: BTreeSet<Position>,
    accounts: Accounts,
    /// What answers for peers, with the replica of this node behind it.
    replicas: BTreeMap<VirtualService, BackendKey>,
}

/// An operation that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The published port that it concerns; `None` if it concerns all.
    pub(super) service: Option<ServiceKey>,
    /// What failed, and why.
    pub(super) error: DatapathError,
}

impl Services {
    /// Opens IPVS and reads what an earlier agent left.
    pub(super) fn adopt() -> Result<Self, DatapathError> {
        let mut services = Self {
            ipvs: Ipvs::open().map_err(|error| failed("open IPVS", error))?,
            present: PresentTable::new(),
            unclaimed: BTreeSet::new(),
            inherited: BTreeSet::new(),
            accounts: Accounts::default(),
            replicas: BTreeMap::new(),
        };
        services
            .reload()
            .map_err(|error| failed("read the IPVS table", error))?;
        services.unclaimed = services.present.keys().copied().collect();
        services.inherited = positions(&services.present).collect();
        Ok(services)
    }

    /// Reads the mesh's virtual services again: something else may have changed them.
    fn reload(&mut self) -> Result<(), IpvsError> {
        let mut present = PresentTable::new();
        for (name, settings) in self.ipvs.services()? {
            if !is_ours(&settings) {
                continue;
            }
            let destinations = self
                .ipvs
                .destinations(&name)?
                .into_iter()
                .map(|(destination, state)| (destination, state.weight))
                .collect();
            present.insert(
                name,
                Present {
                    settings,
                    destinations,
                },
            );
        }
        self.present = present;
        Ok(())
    }

    /// Reads the mesh's virtual services with their destinations.
    pub(super) fn dump(&mut self) -> Result<Vec<DumpedVirtualService>, DatapathError> {
        let reading = |error: IpvsError| failed("read the IPVS table", error);
        let mut services = Vec::new();
        for (name, settings) in self.ipvs.services().map_err(reading)? {
            if !is_ours(&settings) {
                continue;
            }
            let destinations = self.ipvs.destinations(&name).map_err(reading)?;
            let mut destinations: Vec<_> = destinations
                .into_iter()
                .map(|(destination, state)| DumpedDestination {
                    address: destination.address,
                    port: destination.port,
                    weight: state.weight,
                })
                .collect();
            destinations.sort_by_key(|destination| (destination.address, destination.port));
            services.push(DumpedVirtualService {
                address: name.address,
                port: name.port,
                protocol: name.protocol,
                scheduler: settings.scheduler,
                persistence: settings.persistence,
                destinations,
            });
        }
        services.sort_by_key(|service| (service.protocol, service.port, service.address));
        Ok(services)
    }

    /// Forgets services that something else has removed, so that they are made again.
    pub(super) fn verify(&mut self) -> Result<(), DatapathError> {
        let there: BTreeSet<VirtualService> = self
            .ipvs
            .services()
            .map_err(|error| failed("read the IPVS table", error))?
            .into_iter()
            .filter(|(_, settings)| is_ours(settings))
            .map(|(name, _)| name)
            .collect();
        self.present.retain(|name, _| there.contains(name));
        Ok(())
    }

    /// Whether an earlier agent left any that nothing has asked for yet.
    pub(super) fn found_any(&self) -> bool {
        !self.unclaimed.is_empty()
    }

    /// Whether the mesh has this virtual service in the kernel.
    pub(super) fn has(&self, name: &VirtualService) -> bool {
        self.present.contains_key(name)
    }

    /// Makes what is missing, and changes what differs.
    pub(super) fn grow(&mut self, wanted: &Table) -> Vec<Failure> {
        self.unclaimed.retain(|name| !wanted.contains_key(name));
        let mut failures = self.close_accounts(wanted);
        let old: BTreeSet<VirtualService> = self.present.keys().copied().collect();
        let (services, destinations): (Vec<_>, Vec<_>) = additions(&self.present, wanted)
            .into_iter()
            .partition(|command| matches!(command, Command::NewService(..) | Command::SetService(..)));
        failures.extend(self.run(services, wanted));
        // Where a service could not be made, another program's may have its address and port.
        let destinations = destinations
            .into_iter()
            .filter(|command| self.present.contains_key(command.service()))
            .collect();
        failures.extend(self.run(destinations, wanted));
        failures.extend(self.open_accounts(wanted, &old));
        let present = wanted.iter().filter(|(name, _)| self.present.contains_key(name));
        let replicas = present.filter_map(|(name, service)| match service.role {
            Role::Replica(key) => Some((*name, key)),
            Role::Frontend(_) => None,
        });
        self.replicas = replicas.collect();
        failures
    }

    /// Removes what is not wanted, except whole services that an earlier agent left.
    pub(super) fn shrink(&mut self, wanted: &Table) -> Vec<Failure> {
        self.run(removals(&self.present, wanted, &self.unclaimed), wanted)
    }

    /// From now on, what an earlier agent left is not wanted.
    pub(super) fn disown(&mut self) {
        self.unclaimed.clear();
    }

    /// Removes everything that is the mesh's.
    pub(super) fn clear(&mut self) -> Result<(), DatapathError> {
        self.reload()
            .map_err(|error| failed("read the IPVS table", error))?;
        self.disown();
        let failures = self.shrink(&Table::new());
        self.accounts = Accounts::default();
        self.inherited.clear();
        self.replicas.clear();
        failures
            .into_iter()
            .next()
            .map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Visits every connection of the mesh: those that entered here, and those that peers have sent here.
    pub(super) fn connections(
        &self,
        peer_of: impl Fn(Ipv4Addr) -> Option<Ipv4Addr>,
        visit: &mut dyn FnMut(ListedFlow),
    ) -> io::Result<()> {
        connections::for_each(|connection| {
            let replica = self.replicas.get(&connection.service).copied();
            if replica.is_none() && !self.present.contains_key(&connection.service) {
                return;
            }
            let backend =
                replica.or_else(|| self.accounts.owner(&(connection.service, connection.destination)));
            let IpAddr::V4(address) = connection.service.address else {
                return;
            };
            // The virtual service of a replica has its own port.
            let port = replica.map_or(connection.service.port, |key| key.service.port);
            visit(ListedFlow {
                protocol: connection.service.protocol,
                client: connection.client.into(),
                frontend: SocketAddr::from((address, port)),
                presented: None,
                backend,
                state: connection.state,
                idle_seconds: None,
                ingress: match (replica, peer_of(*connection.client.ip())) {
                    (Some(_), Some(peer)) => Ingress::Node(peer),
                    (Some(_) | None, _) => Ingress::Network,
                },
            });
        })
    }

    /// Reads all traffic so far.
    pub(super) fn counters(
        &mut self,
        state: &Desired,
        local: &BTreeMap<BackendKey, u64>,
    ) -> Result<Counters, DatapathError> {
        for service in self.accounts.services() {
            self.read(&service)?;
        }
        self.accounts.read_local(local);
        self.accounts.keep(state);
        let mut counters = self.accounts.counters(state);
        // What peers have sent here is open here as well. It is counted as traffic where it came in.
        for (name, key) in &self.replicas {
            let destinations = self
                .ipvs
                .destinations(name)
                .map_err(|error| failed("read the IPVS statistics", error))?;
            if let Some(open) = counters.open.get_mut(key) {
                let states = destinations.iter().map(|(_, state)| state);
                *open += states.map(|state| open_connections(name, state)).sum::<u64>();
            }
        }
        Ok(counters)
    }

    /// Adds up local processes' connections before their counters go.
    pub(super) fn read_local(&mut self, local: &BTreeMap<BackendKey, u64>) {
        self.accounts.read_local(local);
    }

    fn read(
        &mut self,
        service: &VirtualService,
    ) -> Result<Vec<(Destination, DestinationState)>, DatapathError> {
        let list = self
            .ipvs
            .destinations(service)
            .map_err(|error| failed("read the IPVS statistics", error))?;
        for (destination, state) in &list {
            self.accounts.read(&(*service, *destination), state);
        }
        Ok(list)
    }

    /// Takes the last reading of destinations that are about to be removed, or to become another backend's.
    fn close_accounts(&mut self, wanted: &Table) -> Vec<Failure> {
        let leaving: Vec<Position> = self
            .accounts
            .positions()
            .filter(|(position, backend)| owner(wanted, position) != Some(*backend))
            .map(|(position, _)| position)
            .collect();
        let services: BTreeSet<VirtualService> = leaving.iter().map(|(service, _)| *service).collect();
        let failures = services
            .into_iter()
            .filter_map(|service| self.read(&service).err())
            .map(|error| Failure { service: None, error })
            .collect();
        for position in &leaving {
            self.accounts.close(position);
        }
        failures
    }

    /// Starts counting new destinations. The kernel may return a destination that existed a moment ago with
    /// its old statistics: these do not count.
    fn open_accounts(&mut self, wanted: &Table, old: &BTreeSet<VirtualService>) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (name, service) in wanted {
            let Role::Frontend(key) = service.role else {
                continue;
            };
            let mut opening: Vec<(Destination, BackendKey)> = Vec::new();
            for (destination, wanted) in &service.destinations {
                let position = (*name, *destination);
                let there = self
                    .present
                    .get(name)
                    .is_some_and(|present| present.destinations.contains_key(destination));
                if !there || self.accounts.owner(&position).is_some() {
                    continue;
                }
                if self.inherited.remove(&position) || !old.contains(name) {
                    self.accounts
                        .open(position, wanted.backend, Statistics::default());
                } else {
                    opening.push((*destination, wanted.backend));
                }
            }
            if opening.is_empty() {
                continue;
            }
            match self.read(name) {
                Ok(list) => {
                    let before: BTreeMap<Destination, Statistics> = list
                        .into_iter()
                        .map(|(destination, state)| (destination, state.statistics))
                        .collect();
                    for (destination, backend) in opening {
                        let since = before.get(&destination).copied().unwrap_or_default();
                        self.accounts.open((*name, destination), backend, since);
                    }
                }
                Err(error) => failures.push(Failure {
                    service: Some(key),
                    error,
                }),
            }
        }
        failures
    }

    fn run(&mut self, commands: Vec<Command>, wanted: &Table) -> Vec<Failure> {
        if commands.is_empty() {
            return Vec::new();
        }
        let results = match self.ipvs.apply(&commands) {
            Ok(results) => results,
            Err(error) => {
                let error = failed("change the IPVS table", error);
                return vec![Failure { service: None, error }];
            }
        };
        let mut failures = Vec::new();
        let mut changed_by_others = false;
        for (command, result) in commands.iter().zip(results) {
            match result {
                Ok(()) => record(&mut self.present, command),
                Err(error) if command.is_settled_by(&error) => record(&mut self.present, command),
                Err(error) => {
                    changed_by_others |= matches!(error.errno, Errno::ESRCH | Errno::ENOENT | Errno::EEXIST);
                    failures.push(Failure {
                        service: wanted
                            .get(command.service())
                            .map(|service| service.role.service()),
                        error: failed(command.to_string(), explained(command, error)),
                    });
                }
            }
        }
        if changed_by_others && let Err(error) = self.reload() {
            failures.push(Failure {
                service: None,
                error: failed("read the IPVS table", error),
            });
        }
        failures
    }
}

/// Why the kernel refused a command, with a remedy.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("another program has a virtual service for this address and port; see `ipvsadm -Ln`")]
    InTheWay(#[source] KernelError),
    #[error("this kernel has no IPVS scheduler {0}; load the module ip_vs_{0}")]
    NoScheduler(String, #[source] KernelError),
    #[error(transparent)]
    Kernel(KernelError),
}

fn explained(command: &Command, error: KernelError) -> Refusal {
    match (command, error.errno) {
        (Command::NewService(..), Errno::EEXIST) => Refusal::InTheWay(error),
        (Command::NewService(_, settings) | Command::SetService(_, settings), Errno::ENOENT) => {
            Refusal::NoScheduler(settings.scheduler.clone(), error)
        }
        _ => Refusal::Kernel(error),
    }
}

fn positions(present: &PresentTable) -> impl Iterator<Item = Position> {
    present.iter().flat_map(|(name, service)| {
        service
            .destinations
            .keys()
            .map(|destination| (*name, *destination))
    })
}

/// The backend that a position counts for in a wanted table.
fn owner(wanted: &Table, (service, destination): &Position) -> Option<BackendKey> {
    let destination = wanted.get(service)?.destinations.get(destination)?;
    Some(destination.backend)
}
