//! The way to IPv6 clients: what is sent to the addresses that stand for them leaves by `mesh0`, whose egress
//! program makes it IPv6.

use std::fs;

use netlink_packet_route::{
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteMessage, RouteMetric},
};
use rtnetlink::RouteMessageBuilder;

use super::{DEVICE, Ipv4Addr, Mesh0, Mesh0Error, Settings, failed};
use crate::model::{
    HostInterface,
    mapped::{CLIENTS, CLIENTS_PREFIX},
};

/// Bytes by which an IPv6 header is longer than IPv4's.
const TRANSLATION_BYTES: u32 = 20;
/// `RTAX_LOCK`: the kernel does not lower the route's MTU by what it learns.
const LOCK_MTU: u32 = 1 << 2;

impl Mesh0 {
    /// Adds or removes the way to IPv6 clients, as the settings say.
    ///
    /// The programs find it by the kernel's routes: to a router, which is a permanent neighbour, since on a
    /// device without ARP none is resolved.
    ///
    /// # Errors
    /// When the kernel refuses; it may be called again.
    pub async fn ensure_clients(
        &self,
        settings: Settings,
        interface: HostInterface,
    ) -> Result<(), Mesh0Error> {
        if !settings.ipv6 {
            return self.remove_clients(settings, interface).await;
        }
        let mac = interface.mac.unwrap_or_default().0;
        self.handle
            .neighbours()
            .add(interface.index, settings.service_address.into())
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(failed(format!(
                "make {} a neighbour on {DEVICE}",
                settings.service_address
            )))?;
        self.handle
            .route()
            .add(route(settings, interface))
            .replace()
            .execute()
            .await
            .map_err(failed(format!("route {CLIENTS}/{CLIENTS_PREFIX} to {DEVICE}")))?;
        self.let_forward()
    }

    /// The kernel looks routes up for programs on devices that forward IPv6 only. That this one does changes
    /// nothing else: no packet comes in by it, and the node does not forward for that.
    fn let_forward(&self) -> Result<(), Mesh0Error> {
        let path = self.sysctls.join("net/ipv6/conf").join(DEVICE).join("forwarding");
        let is_set = fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1");
        if is_set {
            return Ok(());
        }
        fs::write(&path, "1").map_err(|source| Mesh0Error::Sysctl { path, source })
    }

    async fn remove_clients(&self, settings: Settings, interface: HostInterface) -> Result<(), Mesh0Error> {
        let route = self
            .handle
            .route()
            .del(route(settings, interface))
            .execute()
            .await;
        unless_missing(route).map_err(failed(format!(
            "remove the route of {CLIENTS}/{CLIENTS_PREFIX} to {DEVICE}"
        )))?;
        let neighbour = neighbour(settings.service_address, interface.index);
        let neighbour = self.handle.neighbours().del(neighbour).execute().await;
        unless_missing(neighbour).map_err(failed(format!(
            "remove the neighbour {} of {DEVICE}",
            settings.service_address
        )))
    }
}

fn route(settings: Settings, interface: HostInterface) -> RouteMessage {
    let mtu = settings.uplink_mtu.saturating_sub(TRANSLATION_BYTES);
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(CLIENTS, CLIENTS_PREFIX)
        .gateway(settings.service_address)
        .output_interface(interface.index)
        .build();
    if settings.ipv6 {
        route.attributes.push(RouteAttribute::Metrics(vec![
            RouteMetric::Mtu(mtu),
            RouteMetric::Lock(LOCK_MTU),
        ]));
    }
    route
}

fn neighbour(address: Ipv4Addr, interface: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = netlink_packet_route::AddressFamily::Inet;
    message.header.ifindex = interface;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

fn unless_missing(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if [-libc::ESRCH, -libc::ENOENT].contains(&message.raw_code()) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        super::tests::{SETTINGS, SYSCTLS, in_namespace, ip, node},
        *,
    };

    #[test]
    fn ipv6_clients_are_routed_to_a_neighbour_that_is_resolved_while_they_are_served() {
        in_namespace(async || {
            node();
            let served = Settings {
                ipv6: true,
                ..SETTINGS
            };
            let mesh0 = Mesh0::new(Path::new(SYSCTLS)).unwrap();
            let interface = mesh0.ensure(served).await.unwrap();
            for mtu in [1500, 1280, 9000] {
                let served = Settings {
                    uplink_mtu: mtu,
                    ..served
                };
                mesh0.ensure(served).await.unwrap();
                mesh0.ensure_clients(served, interface).await.unwrap();
                let routes = ip("route show 248.0.0.0/6");
                assert_eq!(routes.lines().count(), 1, "{routes}");
                assert!(routes.contains("via 169.254.96.1 dev mesh0"), "{routes}");
                assert!(routes.contains(&format!("mtu lock {}", mtu - 20)), "{routes}");
            }
            let forwarding = fs::read_to_string("/proc/sys/net/ipv6/conf/mesh0/forwarding").unwrap();
            assert_eq!(forwarding.trim(), "1", "or programs find no way to clients");
            let lookup = ip("route get 251.1.2.3");
            assert!(lookup.contains("via 169.254.96.1 dev mesh0"), "{lookup}");
            let neighbour = ip("neigh show 169.254.96.1 dev mesh0");
            let mac = interface.mac.unwrap();
            let expected = format!("lladdr {mac} PERMANENT");
            assert!(neighbour.contains(&expected), "{neighbour}");

            for _ in 0..2 {
                mesh0.ensure_clients(SETTINGS, interface).await.unwrap();
                assert_eq!(ip("route show 248.0.0.0/6"), "");
                assert_eq!(ip("neigh show 169.254.96.1 dev mesh0 nud all"), "");
            }
            let lookup = ip("route get 169.254.96.1");
            assert!(lookup.contains("dev mesh0"), "the rest stays: {lookup}");

            let elsewhere = Mesh0::new(Path::new("/nonexistent")).unwrap();
            let error = elsewhere.ensure_clients(served, interface).await.unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("/nonexistent/net/ipv6/conf/mesh0/forwarding"),
                "{error}"
            );

            mesh0.ensure_clients(served, interface).await.unwrap();
            mesh0.remove().await.unwrap();
            assert_eq!(ip("route show 248.0.0.0/6"), "");
        });
    }
}
