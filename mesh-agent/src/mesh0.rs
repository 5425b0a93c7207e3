//! The device that local processes' connections, and answers to IPv6 clients, leave by: `mesh0`, one end of a
//! veth pair, with a route to the service address. Imports the model only. The data path attaches a program
//! to its egress.
//!
//! A packet that the program does not handle goes nowhere: without ARP, the kernel addresses frames on
//! `mesh0` to `mesh0`'s own MAC address, so that `mesh1` drops them as meant for another host.

mod clients;

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::model::{HostInterface, MacAddress};

/// The device with the route and the program.
pub const DEVICE: &str = "mesh0";
/// Its other end, which drops everything that reaches it.
pub const OTHER_END: &str = "mesh1";
/// Bytes that encapsulation adds to a packet; the device's MTU leaves room for them.
pub const ENCAPSULATION_BYTES: u32 = 48;
/// On a device that carries less there is no IPv6 (RFC 8200), and no way to IPv6 clients of any card.
const LEAST_MTU: u32 = 1280;

/// The desired state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The /32 that is routed to it.
    pub service_address: Ipv4Addr,
    /// Source address of connections that leave by it: this node's address as its peers know it.
    pub node_address: Ipv4Addr,
    /// The smallest MTU of an uplink, bytes.
    pub uplink_mtu: u32,
    /// Whether IPv6 clients are served, to whom answers leave by it too.
    pub ipv6: bool,
}

impl Settings {
    /// The largest packet of a local process that fits into the tunnel, as far as uplinks decide it.
    const fn largest_packet(self) -> u32 {
        self.uplink_mtu.saturating_sub(ENCAPSULATION_BYTES)
    }
}

/// The device could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum Mesh0Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket to create {DEVICE}: is AF_NETLINK allowed?")]
    Open(#[source] io::Error),
    /// Something else has the name.
    #[error("there is an interface {0} that the mesh did not create; rename or remove it")]
    NameTaken(&'static str),
    /// The kernel does not list the device that it has just created.
    #[error("{0} is gone right after it was created: is something else removing interfaces?")]
    Vanished(&'static str),
    /// A kernel setting was refused.
    #[error(
        "cannot set {path} to 1, without which the kernel does not say which way leads to an IPv6 client; in a \
         container, the host's /proc/sys/net must be writable"
    )]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused an operation.
    #[error("cannot {operation}; the agent needs CAP_NET_ADMIN in the host's network namespace")]
    Netlink {
        /// What was tried, on what.
        operation: String,
        /// The netlink error.
        source: rtnetlink::Error,
    },
}

/// Whether an interface name is one of the mesh's own.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name == DEVICE || name == OTHER_END
}

/// Creates and removes the device in one network namespace.
pub struct Mesh0 {
    handle: Handle,
    sysctls: PathBuf,
}

impl Mesh0 {
    /// Opens netlink in the calling thread's network namespace. Must be called inside a tokio runtime. Kernel
    /// settings are below `sysctls`.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn new(sysctls: &Path) -> Result<Self, Mesh0Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Mesh0Error::Open)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            sysctls: sysctls.to_owned(),
        })
    }

    /// Brings the device and its route to the settings, whatever an earlier agent left.
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses a step; it may be called again.
    pub async fn ensure(&self, settings: Settings) -> Result<HostInterface, Mesh0Error> {
        if self.find(DEVICE).await?.is_none() {
            if self.find(OTHER_END).await?.is_some() {
                return Err(Mesh0Error::NameTaken(OTHER_END));
            }
            self.handle
                .link()
                .add(LinkVeth::new(DEVICE, OTHER_END).build())
                .execute()
                .await
                .map_err(failed(format!("create the veth pair {DEVICE} and {OTHER_END}")))?;
        }
        let mtu = settings.largest_packet().max(LEAST_MTU);
        for name in [DEVICE, OTHER_END] {
            let link = self.find(name).await?.ok_or(Mesh0Error::Vanished(name))?;
            if !is_veth(&link) {
                return Err(Mesh0Error::NameTaken(name));
            }
            self.configure(name, link.header.index, mtu).await?;
        }
        let link = self.find(DEVICE).await?.ok_or(Mesh0Error::Vanished(DEVICE))?;
        let interface = host_interface(&link).ok_or(Mesh0Error::NameTaken(DEVICE))?;
        self.handle
            .route()
            .add(route(interface.index, settings))
            .replace()
            .execute()
            .await
            .map_err(failed(format!(
                "route {}/32 to {DEVICE} with source {}",
                settings.service_address, settings.node_address
            )))?;
        Ok(interface)
    }

    /// Removes the device, and its other end and route with it; false if there is none.
    ///
    /// # Errors
    /// When the kernel refuses, or another program's interface has the name.
    pub async fn remove(&self) -> Result<bool, Mesh0Error> {
        let Some(link) = self.find(DEVICE).await? else {
            return Ok(false);
        };
        if !is_veth(&link) {
            return Err(Mesh0Error::NameTaken(DEVICE));
        }
        self.handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(failed(format!("remove {DEVICE}")))?;
        Ok(true)
    }

    async fn configure(&self, name: &str, index: u32, mtu: u32) -> Result<(), Mesh0Error> {
        // No link-local address, no router solicitations. The kernel refuses this where IPv6 is off, which is
        // as good.
        let without_ipv6 = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
            ])]))
            .build();
        if let Err(error) = self.handle.link().set(without_ipv6).execute().await {
            tracing::debug!(device = name, %error, "could not turn off IPv6 address generation");
        }
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .mtu(mtu)
            .arp(false)
            .up()
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("set {name} up with MTU {mtu}")))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, Mesh0Error> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        futures_util::pin_mut!(request);
        match request.try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => Ok(None),
            Err(source) => Err(failed(format!("look up {name}"))(source)),
        }
    }
}

fn failed(operation: String) -> impl FnOnce(rtnetlink::Error) -> Mesh0Error {
    move |source| Mesh0Error::Netlink { operation, source }
}

fn route(interface: u32, settings: Settings) -> RouteMessage {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(settings.service_address, 32)
        .output_interface(interface)
        .pref_source(settings.node_address)
        .scope(RouteScope::Link)
        .build();
    // The device may carry more.
    let mtu = RouteMetric::Mtu(settings.largest_packet());
    route.attributes.push(RouteAttribute::Metrics(vec![mtu]));
    route
}

fn is_veth(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
        && link.header.flags.contains(LinkFlags::Broadcast)
        && link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
        })
}

fn host_interface(link: &LinkMessage) -> Option<HostInterface> {
    let mut mac = None;
    let mut mtu = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok().map(MacAddress),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            _ => {}
        }
    }
    Some(HostInterface {
        index: link.header.index,
        mac: Some(mac?),
        mtu: mtu?,
        has_vlans: false,
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use mesh_support::{command, namespace::in_new_network};

    use super::*;

    pub(super) const SYSCTLS: &str = "/proc/sys";

    pub(super) const SETTINGS: Settings = Settings {
        service_address: Ipv4Addr::new(169, 254, 96, 1),
        node_address: Ipv4Addr::new(192, 0, 2, 1),
        uplink_mtu: 1500,
        ipv6: false,
    };

    pub(super) fn in_namespace(test: impl AsyncFnOnce() + Send) {
        in_new_network(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test());
        })
        .expect("this test makes a network namespace: run it as root");
    }

    pub(super) fn ip(arguments: &str) -> String {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        command::output("ip", &arguments, "").unwrap()
    }

    /// A node with its addresses on one end of a wire.
    pub(super) fn node() {
        ip("link set lo up");
        ip("link add wire0 type veth peer name wire1");
        ip("link set wire0 up");
        ip("link set wire1 up");
        ip("address add 192.0.2.1/24 dev wire0");
        ip("address add 192.0.2.9/24 dev wire0");
    }

    #[test]
    fn the_device_routes_the_service_address_with_the_nodes_source() {
        in_namespace(async || {
            node();
            let mesh0 = Mesh0::new(Path::new(SYSCTLS)).unwrap();
            let interface = mesh0.ensure(SETTINGS).await.unwrap();
            assert_eq!(interface.mtu, 1452);
            let route = ip("route get 169.254.96.1");
            assert!(route.contains("dev mesh0 src 192.0.2.1"), "{route}");
            let links = ip("-o link show");
            for name in ["mesh0@mesh1", "mesh1@mesh0"] {
                let line = links.lines().find(|line| line.contains(name)).unwrap();
                assert!(
                    line.contains("NOARP") && line.contains(",UP") && line.contains("mtu 1452"),
                    "{line}"
                );
            }
            assert_eq!(ip("-6 -o address show dev mesh0"), "");

            // A VPN's.
            let small = Settings {
                uplink_mtu: 1280,
                ..SETTINGS
            };
            assert_eq!(mesh0.ensure(small).await.unwrap().mtu, 1280, "IPv6 needs it");
            let route = ip("route get 169.254.96.1");
            assert!(route.contains("mtu 1232"), "{route}");

            let moved = Settings {
                node_address: Ipv4Addr::new(192, 0, 2, 9),
                ..SETTINGS
            };
            assert_eq!(
                mesh0.ensure(moved).await.unwrap(),
                interface,
                "adopted, not recreated"
            );
            let routes = ip("route show 169.254.96.1");
            assert_eq!(routes.lines().count(), 1, "{routes}");
            assert!(routes.contains("src 192.0.2.9"), "{routes}");
        });
    }

    #[test]
    fn removal_leaves_nothing_and_can_be_repeated() {
        in_namespace(async || {
            node();
            let mesh0 = Mesh0::new(Path::new(SYSCTLS)).unwrap();
            mesh0.ensure(SETTINGS).await.unwrap();
            assert!(mesh0.remove().await.unwrap());
            assert!(!mesh0.remove().await.unwrap());
            let links = ip("-o link show");
            assert!(!links.contains("mesh"), "{links}");
            assert_eq!(ip("route show 169.254.96.1"), "");
        });
    }

    #[test]
    fn another_programs_interface_is_left_alone() {
        in_namespace(async || {
            node();
            ip("link add mesh0 type bridge");
            let mesh0 = Mesh0::new(Path::new(SYSCTLS)).unwrap();
            assert!(matches!(
                mesh0.ensure(SETTINGS).await,
                Err(Mesh0Error::NameTaken(_))
            ));
            assert!(matches!(mesh0.remove().await, Err(Mesh0Error::NameTaken(_))));
            assert!(ip("-o link show").contains("mesh0"));
        });
    }

    #[test]
    fn a_packet_that_no_program_handles_is_not_forwarded() {
        in_namespace(async || {
            node();
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
            let mesh0 = Mesh0::new(Path::new(SYSCTLS)).unwrap();
            mesh0.ensure(SETTINGS).await.unwrap();
            for name in [DEVICE, OTHER_END] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/accept_local"), "1").unwrap();
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
            }
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"unhandled", "169.254.96.1:9").unwrap();
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let mesh0_line = devices.lines().find(|line| line.contains("mesh0:")).unwrap();
            let transmitted: u64 = mesh0_line.split_whitespace().nth(10).unwrap().parse().unwrap();
            assert_eq!(transmitted, 1, "the packet was forwarded: {mesh0_line}");
        });
    }
}
