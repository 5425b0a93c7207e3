//! The kernel's IPVS over generic netlink, for both address families: virtual services, destinations and
//! their statistics. Imports the model's protocols; knows nothing of the mesh.
//!
//! Facts from `include/uapi/linux/ip_vs.h` and `net/netfilter/ipvs/ip_vs_ctl.c`. The kernel sums up
//! statistics every two seconds; numbers of open connections are exact.

use std::net::IpAddr;

use netlink_packet_core::DecodeError;
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::{
    datapath::netlink::{Connection, KernelError, Message, NetlinkError},
    model::Protocol,
};

mod decode;
mod encode;
mod numbers;

/// The family's name. Looking it up makes the kernel load the module.
const FAMILY: &str = "IPVS";

/// The key of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualService {
    /// The address that it answers at.
    pub address: IpAddr,
    /// The port that it answers at, host byte order.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl std::fmt::Display for VirtualService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            address,
            port,
            protocol,
        } = self;
        match address {
            IpAddr::V4(address) => write!(formatter, "{address}:{port}/{protocol}"),
            IpAddr::V6(address) => write!(formatter, "[{address}]:{port}/{protocol}"),
        }
    }
}

/// How a virtual service chooses a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The scheduler's name, e.g. `rr`; the kernel loads the module `ip_vs_<name>`.
    pub scheduler: String,
    /// The scheduler's flags.
    pub flags: SchedulerFlags,
    /// Seconds for which a client keeps its destination; `None` lets each connection choose again.
    pub persistence: Option<u32>,
}

/// Three flags whose meaning depends on the scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerFlags {
    /// For `mh`: choose another destination when the hashed one is not available.
    pub first: bool,
    /// For `mh`: hash the client's port too.
    pub second: bool,
    /// No scheduler of the kernel gives it a meaning.
    pub third: bool,
}

/// The key of a destination within its virtual service. All are reached by NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Its address, of the virtual service's family.
    pub address: IpAddr,
    /// Its port, host byte order.
    pub port: u16,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(formatter)
    }
}

/// The kernel's state of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationState {
    /// Its weight; 0 gets no new connections.
    pub weight: u32,
    /// TCP connections that are established.
    pub active: u32,
    /// All other connections: UDP, and TCP that is opening or closing.
    pub inactive: u32,
    /// Its traffic since it was made.
    pub statistics: Statistics,
}

/// Sums since the object was made. Bytes are L3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// One change of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make a virtual service; refused with EEXIST if it exists.
    NewService(VirtualService, Settings),
    /// Change how it chooses.
    SetService(VirtualService, Settings),
    /// Remove it with its destinations; refused with ESRCH if it does not exist.
    RemoveService(VirtualService),
    /// Add a destination with its weight; refused with EEXIST if it exists.
    NewDestination(VirtualService, Destination, u32),
    /// Change its weight.
    SetDestination(VirtualService, Destination, u32),
    /// Remove it; refused with ENOENT if it does not exist.
    RemoveDestination(VirtualService, Destination),
}

impl Command {
    /// The virtual service that it concerns.
    #[must_use]
    pub fn service(&self) -> &VirtualService {
        match self {
            Self::NewService(service, _)
            | Self::SetService(service, _)
            | Self::RemoveService(service)
            | Self::NewDestination(service, ..)
            | Self::SetDestination(service, ..)
            | Self::RemoveDestination(service, _) => service,
        }
    }

    /// Whether a refusal means that there was nothing to do.
    #[must_use]
    pub fn is_settled_by(&self, error: &KernelError) -> bool {
        matches!(
            (self, error.errno),
            (Self::RemoveService(_), Errno::ESRCH)
                | (Self::RemoveDestination(..), Errno::ENOENT | Errno::ESRCH)
        )
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NewService(service, settings) => write!(
                formatter,
                "make the IPVS virtual service {service} with scheduler {}",
                settings.scheduler
            ),
            Self::SetService(service, settings) => write!(
                formatter,
                "change the IPVS virtual service {service} to scheduler {}",
                settings.scheduler
            ),
            Self::RemoveService(service) => write!(formatter, "remove the IPVS virtual service {service}"),
            Self::NewDestination(service, destination, weight) => write!(
                formatter,
                "add destination {destination} with weight {weight} to the IPVS virtual service {service}"
            ),
            Self::SetDestination(service, destination, weight) => write!(
                formatter,
                "set the weight of {destination} in the IPVS virtual service {service} to {weight}"
            ),
            Self::RemoveDestination(service, destination) => write!(
                formatter,
                "remove {destination} from the IPVS virtual service {service}"
            ),
        }
    }
}

/// A request to IPVS failed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS.
    #[error("this kernel has no IPVS: load the module ip_vs, or use a kernel that has it")]
    Missing(#[source] NetlinkError),
    /// Generic netlink failed.
    #[error("cannot {operation}")]
    Netlink {
        /// What was tried, on what.
        operation: String,
        /// The netlink error.
        source: NetlinkError,
    },
}

/// IPVS of one network namespace.
pub struct Ipvs {
    connection: Connection,
    family: u16,
}

impl Ipvs {
    /// Opens IPVS of the calling thread's network namespace; the kernel loads its module if necessary.
    ///
    /// # Errors
    /// When the kernel has no IPVS, or the agent may not use it (CAP_NET_ADMIN).
    pub fn open() -> Result<Self, IpvsError> {
        let opening = |source| IpvsError::Netlink {
            operation: "open generic netlink".to_owned(),
            source,
        };
        let mut connection = Connection::open(NETLINK_GENERIC).map_err(opening)?;
        let request = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        });
        let answer = connection
            .get(&Message::encode(&request, 0))
            .map_err(|error| match error.errno() {
                Some(Errno::ENOENT) => IpvsError::Missing(error),
                _ => opening(error),
            })?;
        let family: GenlMessage<GenlCtrl> = answer
            .ok_or(NetlinkError::Unanswered)
            .and_then(|answer| answer.decode())
            .map_err(opening)?;
        let id = family.payload.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        let family =
            id.ok_or_else(|| opening(NetlinkError::Malformed("a family without a number".into())))?;
        Ok(Self { connection, family })
    }

    /// Lists the virtual services of TCP and UDP ports; without those by firewall mark and of other
    /// protocols, which are not ours.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. without CAP_NET_ADMIN.
    pub fn services(&mut self) -> Result<Vec<(VirtualService, Settings)>, IpvsError> {
        let request = self.message(encode::list_services());
        self.list(&request, decode::read_service, || {
            "list the IPVS virtual services".to_owned()
        })
    }

    /// Lists the destinations of a virtual service; none if there is no such service.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn destinations(
        &mut self,
        service: &VirtualService,
    ) -> Result<Vec<(Destination, DestinationState)>, IpvsError> {
        let request = self.message(encode::list_destinations(service));
        self.list(
            &request,
            |payload| decode::read_destination(payload, service),
            || format!("list the destinations of the IPVS virtual service {service}"),
        )
    }

    /// Carries out commands. Each is tried, whether or not earlier ones failed; the results are in the same
    /// order.
    ///
    /// # Errors
    /// When the exchange with the kernel itself failed.
    pub fn apply(&mut self, commands: &[Command]) -> Result<Vec<Result<(), KernelError>>, IpvsError> {
        let messages: Vec<Message> = commands
            .iter()
            .map(|command| self.message(encode::command(command)))
            .collect();
        self.connection
            .requests(&messages)
            .map_err(|source| IpvsError::Netlink {
                operation: "change the IPVS table".to_owned(),
                source,
            })
    }

    fn list<T>(
        &mut self,
        request: &Message,
        read: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
        operation: impl Fn() -> String,
    ) -> Result<Vec<T>, IpvsError> {
        let failed = |source| IpvsError::Netlink {
            operation: operation(),
            source,
        };
        let mut list = Vec::new();
        for answer in self.connection.dump(request).map_err(failed)? {
            list.extend(read(&answer.payload).map_err(|error| failed(NetlinkError::Malformed(error)))?);
        }
        Ok(list)
    }

    fn message(&self, payload: Vec<u8>) -> Message {
        Message {
            kind: self.family,
            flags: 0,
            payload,
        }
    }
}
