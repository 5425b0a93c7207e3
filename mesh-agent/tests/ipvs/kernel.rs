//! Virtual services and destinations of both address families, written and read back.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use mesh_agent::{
    datapath::ipvs::kernel::{
        Command as Change, Destination, DestinationState, Ipvs, SchedulerFlags, Settings, Statistics,
        VirtualService,
    },
    model::{Algorithm, Protocol},
};
use mesh_support::namespace::in_new_network;
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// Far more than anything here takes; the kernel sums statistics up every two seconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs a test in a network namespace of its own.
fn in_namespace(test: impl FnOnce(Ipvs) + Send) {
    in_new_network(|| {
        // IPVS takes no destinations while there is no local routing table.
        ip(&["link", "set", "lo", "up"]);
        test(Ipvs::open().expect("this test needs a kernel with IPVS; see `cargo xtask vm test`"));
    })
    .expect("this test makes a network namespace: run it as root");
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success());
}

fn service(address: &str, protocol: Protocol) -> VirtualService {
    VirtualService {
        address: address.parse().unwrap(),
        port: 9200,
        protocol,
    }
}

fn settings(scheduler: &str) -> Settings {
    Settings {
        scheduler: scheduler.to_owned(),
        flags: SchedulerFlags::default(),
        persistence: None,
    }
}

fn apply(ipvs: &mut Ipvs, commands: &[Change]) {
    for (command, result) in commands.iter().zip(ipvs.apply(commands).unwrap()) {
        assert_eq!(result, Ok(()), "{command}");
    }
}

fn weights(ipvs: &mut Ipvs, service: &VirtualService) -> Vec<(IpAddr, u16, u32)> {
    let mut list: Vec<_> = ipvs
        .destinations(service)
        .unwrap()
        .into_iter()
        .map(|(destination, state)| (destination.address, destination.port, state.weight))
        .collect();
    list.sort();
    list
}

/// An address to answer at, and two destinations of the same family.
const FAMILIES: [[&str; 3]; 2] = [
    ["192.0.2.1", "172.18.0.3", "250.0.0.8"],
    ["2001:db8::1", "fd00::3", "fd00::8"],
];

#[test]
fn services_and_destinations_are_made_changed_and_removed() {
    in_namespace(|mut ipvs| {
        for [address, first, second] in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = service(address, protocol);
                let [first, second] = [first, second].map(|address| Destination {
                    address: address.parse().unwrap(),
                    port: 80,
                });
                apply(
                    &mut ipvs,
                    &[
                        Change::NewService(service, settings("rr")),
                        Change::NewDestination(service, first, 1),
                        Change::NewDestination(service, second, 7),
                    ],
                );
                assert_eq!(ipvs.services().unwrap(), [(service, settings("rr"))]);
                let list = ipvs.destinations(&service).unwrap();
                assert!(
                    list.contains(&(
                        second,
                        DestinationState {
                            weight: 7,
                            active: 0,
                            inactive: 0,
                            statistics: Statistics::default()
                        }
                    )),
                    "{list:?}"
                );
                apply(
                    &mut ipvs,
                    &[
                        Change::SetDestination(service, first, 0),
                        Change::RemoveDestination(service, second),
                    ],
                );
                assert_eq!(weights(&mut ipvs, &service), [(first.address, 80, 0)]);
                apply(&mut ipvs, &[Change::RemoveService(service)]);
                assert_eq!(ipvs.services().unwrap(), []);
                assert_eq!(ipvs.destinations(&service).unwrap(), []);
            }
        }
    });
}

/// Exchanges data between a client and a destination in this namespace through a virtual service; the
/// connection is open for as long as the result lives.
fn exchange(client: IpAddr, service: &VirtualService, destination: &Destination) -> Vec<OwnedFd> {
    let client = SocketAddr::new(client, 0);
    let front = SocketAddr::new(service.address, service.port);
    let back = SocketAddr::new(destination.address, destination.port);
    let mut data = [0; 4];
    match service.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(back).unwrap();
            let socket = Socket::new(Domain::for_address(client), Type::STREAM, None).unwrap();
            socket.bind(&client.into()).unwrap();
            socket.connect_timeout(&front.into(), LIMIT).unwrap();
            let mut dialled = TcpStream::from(socket);
            dialled.set_read_timeout(Some(LIMIT)).unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), client.ip());
            accepted.write_all(b"data").unwrap();
            dialled.read_exact(&mut data).unwrap();
            vec![dialled.into(), accepted.into()]
        }
        Protocol::Udp => {
            let [socket, server] = [client, back].map(|address| UdpSocket::bind(address).unwrap());
            for end in [&socket, &server] {
                end.set_read_timeout(Some(LIMIT)).unwrap();
            }
            socket.connect(front).unwrap();
            socket.send(b"data").unwrap();
            let (_, peer) = server.recv_from(&mut data).unwrap();
            assert_eq!(peer.ip(), client.ip());
            server.send_to(&data, peer).unwrap();
            socket.recv(&mut data).unwrap();
            vec![socket.into(), server.into()]
        }
    }
}

/// The destination's state once its statistics include a connection.
fn counted(ipvs: &mut Ipvs, service: &VirtualService) -> DestinationState {
    let begin = Instant::now();
    loop {
        let list = ipvs.destinations(service).unwrap();
        match list.as_slice() {
            [(_, state)] if state.statistics.connections > 0 => return *state,
            _ => assert!(begin.elapsed() < LIMIT, "nothing is counted: {list:?}"),
        }
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn traffic_through_services_of_both_families_is_counted() {
    in_namespace(|mut ipvs| {
        for ([address, destination, _], client) in FAMILIES.into_iter().zip(["172.18.0.9", "fd00::9"]) {
            for address in [address, destination, client] {
                let mut arguments = vec!["address", "add", address, "dev", "lo"];
                // Usable at once.
                arguments.extend(address.contains(':').then_some("nodad"));
                ip(&arguments);
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = service(address, protocol);
                let destination = Destination {
                    address: destination.parse().unwrap(),
                    port: 80,
                };
                apply(
                    &mut ipvs,
                    &[
                        Change::NewService(service, settings("rr")),
                        Change::NewDestination(service, destination, 1),
                    ],
                );
                let open = exchange(client.parse().unwrap(), &service, &destination);
                let state = counted(&mut ipvs, &service);
                drop(open);
                let connections = match protocol {
                    Protocol::Tcp => (1, 0),
                    Protocol::Udp => (0, 1),
                };
                assert_eq!((state.active, state.inactive), connections, "{service}");
                let counted = state.statistics;
                assert_eq!(counted.connections, 1, "{service}");
                assert!(counted.packets_in > 0 && counted.packets_out > 0, "{counted:?}");
                assert!(counted.bytes_in > 0 && counted.bytes_out > 0, "{counted:?}");
                apply(&mut ipvs, &[Change::RemoveService(service)]);
            }
        }
    });
}

/// Only tunnels may have destinations of the other family (`ip_vs_genl_set_cmd`,
/// net/netfilter/ipvs/ip_vs_ctl.c). This is why there are no IPv6 frontends: the replicas that Swarm makes
/// have IPv4 addresses only.
#[test]
fn with_masquerade_a_destination_of_the_other_family_is_refused() {
    in_namespace(|mut ipvs| {
        let [[address4, destination4, _], [address6, destination6, _]] = FAMILIES;
        for (address, other) in [(address6, destination4), (address4, destination6)] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let service = service(address, protocol);
                let destination = Destination {
                    address: other.parse().unwrap(),
                    port: 80,
                };
                apply(&mut ipvs, &[Change::NewService(service, settings("rr"))]);
                let results = ipvs
                    .apply(&[Change::NewDestination(service, destination, 1)])
                    .unwrap();
                let errors: Vec<Errno> = results
                    .into_iter()
                    .filter_map(|result| Some(result.err()?.errno))
                    .collect();
                assert_eq!(errors, [Errno::EINVAL], "{destination} under {service}");
                assert_eq!(ipvs.destinations(&service).unwrap(), []);
                apply(&mut ipvs, &[Change::RemoveService(service)]);
            }
        }
    });
}

#[test]
fn every_scheduler_works_with_and_without_persistence() {
    in_namespace(|mut ipvs| {
        for [address, ..] in FAMILIES {
            let service = service(address, Protocol::Tcp);
            apply(&mut ipvs, &[Change::NewService(service, settings("rr"))]);
            for algorithm in Algorithm::ALL {
                for persistence in [Some(60), None] {
                    let wanted = Settings {
                        scheduler: algorithm.in_ipvs().name().to_owned(),
                        flags: SchedulerFlags {
                            first: persistence.is_some(),
                            second: persistence.is_none(),
                            third: true,
                        },
                        persistence,
                    };
                    apply(&mut ipvs, &[Change::SetService(service, wanted.clone())]);
                    assert_eq!(ipvs.services().unwrap(), [(service, wanted)]);
                }
            }
            apply(&mut ipvs, &[Change::RemoveService(service)]);
        }
    });
}

#[test]
fn each_refusal_has_its_own_error() {
    in_namespace(|mut ipvs| {
        let service = service("192.0.2.1", Protocol::Tcp);
        let destination = Destination {
            address: "172.18.0.3".parse().unwrap(),
            port: 80,
        };
        let commands = [
            Change::RemoveService(service),
            Change::NewService(service, settings("nosuch")),
            Change::NewService(service, settings("rr")),
            Change::NewService(service, settings("rr")),
            Change::RemoveDestination(service, destination),
            Change::NewDestination(service, destination, 1),
            Change::NewDestination(service, destination, 1),
        ];
        let results = ipvs.apply(&commands).unwrap();
        let errors: Vec<Option<Errno>> = results
            .iter()
            .map(|result| result.as_ref().err().map(|error| error.errno))
            .collect();
        assert_eq!(
            errors,
            [
                Some(Errno::ESRCH),
                Some(Errno::ENOENT),
                None,
                Some(Errno::EEXIST),
                Some(Errno::ENOENT),
                None,
                Some(Errno::EEXIST),
            ]
        );
        for (command, result) in commands.iter().zip(&results) {
            let settled = result.as_ref().is_err_and(|error| command.is_settled_by(error));
            assert_eq!(
                settled,
                matches!(command, Change::RemoveService(_) | Change::RemoveDestination(..))
            );
        }
    });
}

#[test]
fn hundreds_of_commands_are_answered_in_order() {
    in_namespace(|mut ipvs| {
        let service = service("192.0.2.1", Protocol::Udp);
        let mut commands = vec![Change::NewService(service, settings("wlc"))];
        commands.extend((0..500_u16).map(|number| {
            let destination = Destination {
                address: IpAddr::from([172, 18, (number >> 8) as u8, number as u8]),
                port: 53,
            };
            Change::NewDestination(service, destination, u32::from(number))
        }));
        apply(&mut ipvs, &commands);
        assert_eq!(weights(&mut ipvs, &service).len(), 500);
    });
}
