//! Virtual services and destinations of both address families, written and read back.

use std::{net::IpAddr, process::Command};

use mesh_agent::{
    datapath::ipvs::kernel::{
        Command as Change, Destination, DestinationState, Ipvs, SchedulerFlags, Settings, Statistics,
        VirtualService,
    },
    model::{Protocol, Scheduler},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

/// Runs a test in a network namespace of its own.
fn in_namespace(test: impl FnOnce(Ipvs) + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
        // IPVS takes no destinations while there is no local routing table.
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        test(Ipvs::open().expect("this test needs a kernel with IPVS; see `cargo xtask vm test`"));
    })
    .join()
    .unwrap();
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

#[test]
fn every_scheduler_can_be_had_with_persistence_and_without() {
    in_namespace(|mut ipvs| {
        for [address, ..] in FAMILIES {
            let service = service(address, Protocol::Tcp);
            apply(&mut ipvs, &[Change::NewService(service, settings("rr"))]);
            for scheduler in Scheduler::ALL {
                for persistence in [Some(60), None] {
                    let wanted = Settings {
                        scheduler: scheduler.name().to_owned(),
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
fn refusals_are_told_apart() {
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
