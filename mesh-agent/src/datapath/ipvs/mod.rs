//! The data path without eBPF: the kernel's IPVS, with the nftables rules, tunnel and settings that it needs,
//! programmed over netlink. Imports the model and the plan.
//!
//! It keeps the desired state, and after each batch of changes brings the kernel's objects to what the state
//! requires: what others refer to is made first, and what nothing refers to any more is removed last.

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use tracing::{debug, warn};

pub mod address;
pub mod kernel;
pub mod rules;
pub mod tunnel;

mod accounts;
mod connections;
mod detour;
mod difference;
mod hairpin;
mod link;
mod plans;
mod record_file;
mod services;
mod sysctls;
mod wanted;

use self::{
    detour::Detour,
    hairpin::Hairpin,
    rules::{Rules, RulesError, Table},
    services::{Failure, Services},
    sysctls::{SysctlError, Sysctls},
    tunnel::{Tunnel, TunnelError, TunnelPlan},
};
use super::{
    ChangeError, Counters, Datapath, DatapathError, InterfaceMode, Mode,
    dump::Dump,
    failed,
    failed_change::{culprit, restore},
    flow_list::{FlowCursor, ListedFlow},
};
use crate::{
    model::{BackendKey, Desired, NodeDatapath},
    plan::{DatapathChange, fold},
};

/// Removes what earlier agents left in this network namespace. Looks for their traces first, so that no
/// kernel module is loaded where there are none; returns whether there were any.
///
/// # Errors
/// When something could not be removed.
pub fn remove_leftovers(options: IpvsOptions) -> Result<bool, DatapathError> {
    let recorded = [SYSCTL_RECORD, HAIRPIN_RECORD]
        .iter()
        .any(|record| options.run_directory.join(record).exists());
    let connected = nix::net::if_::if_nametoindex(tunnel::DEVICE).is_ok();
    if !(recorded || connected) {
        return Ok(false);
    }
    IpvsDatapath::new(options)?.detach()?;
    Ok(true)
}

/// File in the run directory that records kernel settings from before the mesh changed them.
const SYSCTL_RECORD: &str = "ipvs-sysctls.json";
/// File in the run directory that records which bridge ports the mesh put into hairpin mode.
const HAIRPIN_RECORD: &str = "ipvs-hairpin.json";
/// Calls of `maintain` (about a second apart) between two checks of the kernel's objects.
const VERIFY_EVERY: u32 = 10;

/// How to set the data path up.
#[derive(Clone, Debug)]
pub struct IpvsOptions {
    /// UDP port of the tunnel between nodes.
    pub tunnel_port: u16,
    /// The bridge behind which containers are reached: Docker's `docker_gwbridge` for Swarm's tasks.
    pub bridge: String,
    /// The address at which only the eBPF data path answers.
    pub service_address: Ipv4Addr,
    /// Directory for what must outlive a killed agent, e.g. `/run/mesh`; created if it is missing.
    pub run_directory: PathBuf,
    /// Root of the kernel's settings: `/proc/sys`, or where a container has it mounted.
    pub sysctls: PathBuf,
}

impl Default for IpvsOptions {
    fn default() -> Self {
        Self {
            tunnel_port: 6081,
            bridge: "docker_gwbridge".to_owned(),
            service_address: Ipv4Addr::new(169, 254, 96, 1),
            run_directory: PathBuf::from("/run/mesh"),
            sysctls: PathBuf::from("/proc/sys"),
        }
    }
}

/// The data path of one network namespace: that of the thread that made it, on which all calls must be made.
pub struct IpvsDatapath {
    options: IpvsOptions,
    state: Desired,
    services: Services,
    rules: Table,
    tunnel: Tunnel,
    /// The last plan for the tunnel.
    tunnel_plan: Option<TunnelPlan>,
    sysctls: Sysctls,
    hairpin: Hairpin,
    detour: Detour,
    /// Whether anything has been applied since the start or since everything was removed.
    engaged: bool,
    /// Whether the kernel is not yet in the state that is desired.
    unsettled: bool,
    rounds: u32,
    /// Whether an earlier agent's virtual services were found.
    adopted: bool,
}

impl IpvsDatapath {
    /// Opens IPVS (the kernel loads its module) and reads what an earlier agent left. Changes nothing.
    ///
    /// # Errors
    /// When the kernel has no IPVS or the agent may not use it.
    pub fn new(options: IpvsOptions) -> Result<Self, DatapathError> {
        let services = Services::adopt()?;
        let rules = Table::open().map_err(|error| failed("open nftables", error))?;
        let tunnel = Tunnel::new().map_err(|error| failed("open rtnetlink", error))?;
        let sysctls = Sysctls::open(&options.sysctls, &options.run_directory.join(SYSCTL_RECORD))
            .map_err(|error| failed("read the record of earlier kernel settings", error))?;
        let hairpin = Hairpin::open(&options.run_directory.join(HAIRPIN_RECORD))
            .map_err(|error| failed("read the record of bridge ports in hairpin mode", error))?;
        let detour = Detour::open().map_err(|error| failed("open rtnetlink", error))?;
        debug!("IPVS opened");
        Ok(Self {
            options,
            state: Desired::default(),
            adopted: services.found_any(),
            services,
            rules,
            tunnel,
            tunnel_plan: None,
            sysctls,
            hairpin,
            detour,
            engaged: false,
            unsettled: false,
            rounds: 0,
        })
    }

    /// Brings the kernel to the desired state: first the tunnel and settings that new destinations need, then
    /// the destinations, then the rules that send packets to them. What is no longer wanted goes in the
    /// opposite order.
    fn reconcile(&mut self) -> Vec<Failure> {
        let wanted = wanted::table(&self.state, self.options.service_address);
        // For a service without replicas IPVS would drop packets silently; the rules refuse them instead.
        let mut served = wanted.clone();
        served.retain(|_, service| !service.destinations.is_empty());
        let plan = plans::tunnel(&self.state, &self.options);
        let mut steps = Steps::default();
        steps.tried("change kernel settings", self.set_ipvs_sysctls());
        let interfaces = plans::replica_interfaces(&self.state);
        steps.tried("set replicas' bridge ports", self.hairpin.apply(&interfaces));
        steps.tried("make the detour", self.detour.ensure());
        if let Some(plan) = &plan {
            let wide = match &self.tunnel_plan {
                Some(old) => plans::widened(old, plan),
                None => plan.clone(),
            };
            steps.tried("make the tunnel", self.make_tunnel(wide));
        }
        steps.failures.extend(self.services.grow(&served));
        let rules = plans::rules(&self.state, &self.options, &wanted, |name| {
            !served.contains_key(name) || self.services.has(name)
        });
        // Count what is about to be removed.
        match self.rules.counters() {
            Ok(connections) => self.services.read_local(&connections),
            Err(error) => steps.tried("read the nftables counters", Err(error)),
        }
        steps.tried("write the nftables rules", self.rules.apply(&rules));
        steps.tried("change kernel settings", self.set_bridge_sysctls(&rules));
        steps.failures.extend(self.services.shrink(&served));
        match plan {
            Some(plan) if self.tunnel_plan.as_ref() == Some(&plan) => {}
            Some(plan) => steps.tried("change the tunnel", self.make_tunnel(plan)),
            None => {
                self.tunnel_plan = None;
                steps.tried("remove the tunnel", self.tunnel.remove());
            }
        }
        self.unsettled = !steps.failures.is_empty();
        steps.failures
    }

    /// Removes the frontends from the rules, if there are any rules.
    fn empty_rules(&mut self) -> Result<(), RulesError> {
        if self.rules.read()?.is_none() {
            return Ok(());
        }
        self.rules.apply(&Rules {
            bridge: self.options.bridge.clone(),
            tunnel_port: self.options.tunnel_port,
            ..Rules::default()
        })
    }

    fn make_tunnel(&mut self, plan: TunnelPlan) -> Result<(), TunnelError> {
        let idle = self.state.backends.is_empty();
        let result = self.tunnel.apply(&plan);
        self.tunnel_plan = Some(plan);
        match result {
            // Docker creates the bridge when the node joins a Swarm; until then there is nothing to connect.
            Err(TunnelError::NoBridge(_)) if idle => Ok(()),
            result => result,
        }
    }

    /// Settings that IPVS connections need.
    fn set_ipvs_sysctls(&mut self) -> Result<(), SysctlError> {
        // Docker's firewall rules depend on conntrack, so IPVS must update it.
        self.sysctls.set("net/ipv4/vs/conntrack", "1")?;
        // A connection whose destination is gone expires at its next packet.
        self.sysctls.set("net/ipv4/vs/expire_nodest_conn", "1")?;
        // Persistence does not tie a client to a draining destination.
        self.sysctls.set("net/ipv4/vs/expire_quiescent_template", "1")?;
        // A replica's reply to a peer is routed again by the mesh address that IPVS writes into it.
        self.sysctls.set("net/ipv4/vs/snat_reroute", "1")?;
        // The agent's probes of its peers are ICMP echo requests, by a socket that needs no capability.
        self.sysctls
            .include("net/ipv4/ping_group_range", nix::unistd::getegid().as_raw())
    }

    /// Lets local processes' connections to 127.0.0.1 reach containers. The rules, which are in place before,
    /// keep containers from reaching 127.0.0.1 in turn.
    fn set_bridge_sysctls(&mut self, rules: &Rules) -> Result<(), SysctlError> {
        let bridge = &rules.bridge;
        self.sysctls
            .set(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")
    }
}

/// The failures of a series of steps, each of which is tried whether or not others fail.
#[derive(Default)]
struct Steps {
    failures: Vec<Failure>,
}

impl Steps {
    fn tried<E>(&mut self, operation: &str, result: Result<(), E>)
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        if let Err(error) = result {
            self.failures.push(Failure {
                service: None,
                error: failed(operation, error),
            });
        }
    }
}

impl Datapath for IpvsDatapath {
    fn dump(&mut self, _: usize) -> Result<Dump, DatapathError> {
        Ok(Dump {
            datapath: NodeDatapath::Ipvs,
            virtual_services: self.services.dump()?,
            ..Dump::default()
        })
    }

    fn read_flows(
        &mut self,
        _: &mut FlowCursor,
        visit: &mut dyn FnMut(ListedFlow),
    ) -> Result<bool, DatapathError> {
        let own = self.state.settings.node_address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let peers = address::peers_mesh_addresses(own, self.state.peers.keys().copied());
        // A peer sends what others have sent to it with its own address.
        let peer_of = |source| {
            let mut peers = peers.iter();
            peers.find_map(|(peer, inside)| (*peer == source || *inside == source).then_some(*peer))
        };
        self.services
            .connections(peer_of, visit)
            .map_err(|error| failed("read IPVS's connections in /proc/net/ip_vs_conn", error))?;
        Ok(false)
    }

    fn kind(&self) -> NodeDatapath {
        NodeDatapath::Ipvs
    }

    fn adopted(&self) -> bool {
        self.adopted
    }

    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
        let before = self.state.clone();
        self.engaged |= !changes.is_empty();
        let mut failures = Vec::new();
        let mut removed = BTreeSet::<BackendKey>::new();
        for change in changes {
            match change {
                DatapathChange::RemoveBackend(key) => drop(removed.insert(*key)),
                // Another task takes over the key of a removed one: apply the removal first, so that it
                // inherits nothing.
                DatapathChange::UpsertBackend(key, _) if removed.contains(key) => {
                    failures.extend(self.reconcile());
                    removed.clear();
                }
                DatapathChange::Configure(_)
                | DatapathChange::SetMacs(_)
                | DatapathChange::UpsertPeer(..)
                | DatapathChange::RemovePeer(_)
                | DatapathChange::UpsertMasquerade(..)
                | DatapathChange::RemoveMasquerade(_)
                | DatapathChange::UpsertBackend(..)
                | DatapathChange::UpsertService(..)
                | DatapathChange::RemoveService(_)
                | DatapathChange::AddOwnIpv6(..)
                | DatapathChange::RemoveOwnIpv6(..)
                | DatapathChange::AddFrontend(_)
                | DatapathChange::RemoveFrontend(_)
                | DatapathChange::AttachContainer(_)
                | DatapathChange::DetachContainer(_)
                | DatapathChange::AttachUplink(..)
                | DatapathChange::DetachUplink(_) => {}
            }
            fold(&mut self.state, change.clone());
        }
        if !changes.is_empty() || self.unsettled {
            failures.extend(self.reconcile());
        }
        let mut errors: Vec<ChangeError> = Vec::new();
        for failure in failures {
            let Some(change) = culprit(changes, failure.service) else {
                let error: &dyn std::error::Error = &failure.error;
                warn!(error, "a part of the data path could not be updated, retrying");
                continue;
            };
            // The first failure is the one that matters: the change is tried again as a whole.
            if errors.iter().all(|error| error.change != *change) {
                restore(&mut self.state, &before, change);
                errors.push(ChangeError {
                    change: change.clone(),
                    service: failure.service,
                    source: failure.error,
                });
            }
        }
        errors
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let local = self
            .rules
            .counters()
            .map_err(|error| failed("read the nftables counters", error))?;
        self.services.counters(&self.state, &local)
    }

    fn modes(&self) -> Vec<InterfaceMode> {
        self.state
            .uplinks
            .keys()
            .map(|name| InterfaceMode {
                interface: name.clone(),
                mode: Mode::Ipvs,
                reason: String::new(),
            })
            .collect()
    }

    fn maintain(&mut self) -> Result<(), DatapathError> {
        self.rounds = self.rounds.wrapping_add(1);
        let verify = self.rounds.is_multiple_of(VERIFY_EVERY) && self.engaged;
        if verify {
            // Something else may have removed objects, or Docker recreated its bridge.
            self.services.verify()?;
        }
        if !self.unsettled && !verify {
            return Ok(());
        }
        self.reconcile()
            .into_iter()
            .next()
            .map_or(Ok(()), |failure| Err(failure.error))
    }

    fn prune(&mut self, _: &Desired) -> Result<(), DatapathError> {
        // The changes so far have claimed what is desired.
        self.services.disown();
        self.reconcile()
            .into_iter()
            .next()
            .map_or(Ok(()), |failure| Err(failure.error))
    }

    fn detach(&mut self) -> Result<(), DatapathError> {
        self.state = Desired::default();
        self.tunnel_plan = None;
        self.unsettled = false;
        self.engaged = false;
        let mut steps = Steps::default();
        // Docker's own rules apply again before IPVS stops answering; the guard of 127.0.0.0/8 goes last.
        steps.tried("empty the nftables rules", self.empty_rules());
        let services = self.services.clear();
        steps.tried("remove the tunnel", self.tunnel.remove());
        steps.tried("remove the detour", self.detour.remove());
        steps.tried("put bridge ports back", self.hairpin.apply(&BTreeSet::new()));
        steps.tried("put kernel settings back", self.sysctls.restore());
        steps.tried("remove the nftables rules", self.rules.remove());
        let first = steps.failures.into_iter().next();
        services.and(first.map_or(Ok(()), |failure| Err(failure.error)))
    }
}
