//! A test's own world: a network namespace with the interfaces a node has, a pin directory, a cgroup,
//! and the data path loaded into them. All of it goes with the test.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use mesh_agent::{
    datapath::{
        Datapath, TcChoice, Traffic, XdpChoice,
        ebpf::{EbpfDatapath, EbpfOptions},
    },
    model::{
        Backend, BackendKey, BackendState, Balance, Container, Desired, Frontend, HostInterface, Location,
        MacAddress, NextHop, Protocol, ReturnMode, ServiceEntry, ServiceKey,
        desired::{Settings, task_tag},
    },
    plan::plan,
};
use mesh_support::{
    command, error_chain,
    namespace::{disable_ipv6, in_new_network_and_mounts, mount_new, sysctl},
};
use nix::net::if_::if_nametoindex;

use crate::frames::{Macs, Tunnel};

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;
pub(crate) const TC_UNSPEC: u32 = u32::MAX;
pub(crate) const TC_SHOT: u32 = 2;
pub(crate) const TC_REDIRECT: u32 = 7;

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);
pub(crate) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
pub(crate) const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 5);
pub(crate) const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 10), 40_000);
pub(crate) const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9200,
};
pub(crate) const DNS: ServiceKey = ServiceKey {
    protocol: Protocol::Udp,
    port: 5300,
};

pub(crate) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
pub(crate) const MESH0_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
pub(crate) const CONTAINER_MAC: [u8; 6] = [2, 0x42, 172, 18, 0, 5];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0x42, 172, 18, 0, 1];

const VNI: u32 = 0x00ab_cdef;
const FROM_ROUTER: Macs = Macs {
    source: ROUTER_MAC,
    destination: UPLINK_MAC,
};

/// The links of a node: an uplink to a router and a peer, a container's veth, mesh0. The far ends only
/// have to be there.
const LINKS: &str = "\
link set lo up
link add up0 address 02:00:00:00:00:01 type veth peer name up1
link add box0 type veth peer name box1
link add mesh0 address 02:00:00:00:01:00 type veth peer name mesh1
link set up0 up
link set up1 up
link set box0 up
link set box1 up
link set mesh0 up
link set mesh1 up
address add 10.0.0.1/24 dev up0
neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0 nud permanent
neighbour add 10.0.0.254 lladdr 02:00:00:00:00:fe dev up0 nud permanent
route add default via 10.0.0.254
route add unreachable 203.0.113.0/24
";

const BPFFS: &str = "/sys/fs/bpf";

/// Gives a test its own world, in a thread of its own, which takes its namespaces with it.
#[track_caller]
pub(crate) fn in_space(test: impl FnOnce(&mut Space) + Send) {
    in_space_with(None, 4096, test);
}

/// The same with another eBPF object than the agent's, and a flow table of another size.
#[track_caller]
pub(crate) fn in_space_with(object: Option<&[u8]>, flow_capacity: u32, test: impl FnOnce(&mut Space) + Send) {
    in_new_network_and_mounts(|| {
        // Not every machine has one mounted.
        mount_new("bpf", Path::new(BPFFS)).expect("a bpf file system");
        test(&mut Space::new(object, flow_capacity));
    })
    .expect("this test loads eBPF programs into network namespaces: run it as root");
}

/// What a program has made of a frame.
pub(crate) struct Output {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
}

/// A node, its data path loaded.
pub(crate) struct Space {
    /// `None`: the agent's own.
    object: Option<Vec<u8>>,
    /// `None` only between a crash and the next load.
    datapath: Option<EbpfDatapath>,
    state: Desired,
    options: EbpfOptions,
    pub(crate) uplink: u32,
    pub(crate) container: u32,
    pub(crate) mesh0: u32,
}

impl Space {
    fn new(object: Option<&[u8]>, flow_capacity: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "mesh-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        // Of this thread's network namespace. IPv6 would send packets of its own, which are counted too.
        disable_ipv6().expect("IPv6 can be turned off");
        sysctl("net/ipv4/ip_forward", "1").expect("forwarding can be turned on");
        command::output("ip", &["-batch", "-"], LINKS).expect("`ip` of Debian's package iproute2 runs");
        let cgroup = cgroup2().join(&name);
        fs::create_dir(&cgroup).expect("a cgroup of the test's own");
        let options = EbpfOptions {
            pins: Path::new(BPFFS).join(&name),
            cgroup,
            xdp: XdpChoice::Native,
            tc: TcChoice::Auto,
            flow_capacity,
            geneve_port: 6081,
            service_address: SERVICE_ADDRESS,
            netns_cookie: 0,
        };
        let mut space = Self {
            object: object.map(<[u8]>::to_vec),
            datapath: None,
            state: Desired::default(),
            options,
            uplink: index("up0"),
            container: index("box0"),
            mesh0: index("mesh0"),
        };
        space.load();
        space
    }

    /// Loads the data path, as an agent that starts.
    pub(crate) fn load(&mut self) {
        self.state = Desired::default();
        let options = self.options.clone();
        let loaded = match &self.object {
            Some(object) => EbpfDatapath::load_object(object, options),
            None => EbpfDatapath::load(options),
        };
        match loaded {
            Ok(datapath) => self.datapath = Some(datapath),
            Err(error) => panic!("{}", error_chain(&error)),
        }
    }

    /// The agent dies without a word: what it has pinned stays.
    pub(crate) fn crash(&mut self) {
        self.datapath = None;
    }

    pub(crate) fn datapath(&mut self) -> &mut EbpfDatapath {
        self.datapath.as_mut().expect("the data path is loaded")
    }

    /// Where this version's pins are.
    pub(crate) fn pins(&self) -> &Path {
        &self.options.pins
    }

    /// Makes a state true, as the agent does.
    #[track_caller]
    pub(crate) fn apply(&mut self, state: &Desired) {
        let changes = plan(&self.state, state);
        let errors = self.datapath().apply(&changes);
        let errors: Vec<String> = errors.iter().map(|error| error_chain(error)).collect();
        assert!(errors.is_empty(), "{errors:?}");
        self.state = state.clone();
    }

    /// Feeds a frame to the XDP program, as if received on the uplink.
    pub(crate) fn xdp(&mut self, frame: &[u8]) -> Output {
        self.run_xdp("mesh_xdp", frame, 1).0
    }

    /// Runs an XDP program many times; returns the last output, and the nanoseconds each took on average.
    pub(crate) fn run_xdp(&mut self, name: &str, frame: &[u8], repeat: u32) -> (Output, u64) {
        // `struct xdp_md`: data_end, ingress_ifindex.
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.uplink.to_ne_bytes());
        let program: &mut Xdp = self
            .datapath()
            .programs()
            .program_mut(name)
            .expect("the object has it")
            .try_into()
            .expect("an XDP program");
        run(program, frame, &context, repeat)
    }

    /// Feeds a frame to the uplink's tc program.
    pub(crate) fn tc_uplink(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_uplink", self.uplink, frame, 0, 1).0
    }

    /// Feeds what GRO would make of some segments to the uplink's tc program.
    pub(crate) fn tc_uplink_aggregated(&mut self, frame: &[u8], segments: u32) -> Output {
        self.run_tc("mesh_uplink", self.uplink, frame, segments, 1).0
    }

    /// Feeds what the container sends to the tc program at the host end of its veth.
    pub(crate) fn tc_container(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_container", self.container, frame, 0, 1).0
    }

    /// Feeds what a local process sends to the tc program of mesh0.
    pub(crate) fn tc_mesh0(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_local", self.mesh0, frame, 0, 1).0
    }

    /// Runs a tc program many times; see [`Self::run_xdp`].
    pub(crate) fn run_tc(
        &mut self,
        name: &str,
        interface: u32,
        frame: &[u8],
        segments: u32,
        repeat: u32,
    ) -> (Output, u64) {
        // `struct __sk_buff`: ifindex, gso_segs, gso_size.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&interface.to_ne_bytes());
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        let size: u32 = if segments == 0 { 0 } else { 1000 };
        context[176..180].copy_from_slice(&size.to_ne_bytes());
        let program: &mut SchedClassifier = self
            .datapath()
            .programs()
            .program_mut(name)
            .expect("the object has it")
            .try_into()
            .expect("a tc program");
        run(program, frame, &context, repeat)
    }

    /// Drops by hook and reason, those that are not zero.
    pub(crate) fn drops(&mut self) -> BTreeMap<(String, String), u64> {
        let counters = self.datapath().counters().expect("counters can be read");
        counters
            .drops
            .into_iter()
            .filter(|drop| drop.packets > 0)
            .map(|drop| ((drop.hook, drop.reason), drop.packets))
            .collect()
    }

    /// A backend's traffic.
    pub(crate) fn traffic(&mut self, key: BackendKey) -> Traffic {
        let counters = self.datapath().counters().expect("counters can be read");
        counters.backends[&key]
    }

    /// A node with interfaces and a peer, and no service.
    pub(crate) fn node(&self) -> Desired {
        let interface = |index, mac| HostInterface {
            index,
            mac: MacAddress(mac),
            mtu: 1500,
        };
        Desired {
            uplinks: BTreeMap::from([("up0".to_owned(), interface(self.uplink, UPLINK_MAC))]),
            peers: BTreeMap::from([(PEER, Some(self.way(PEER_MAC)))]),
            container_interfaces: [self.container].into(),
            settings: Settings {
                node_address: Some(NODE),
                vni: VNI,
                return_mode: ReturnMode::Tunnel,
                mesh0: Some(interface(self.mesh0, MESH0_MAC)),
            },
            ..Desired::default()
        }
    }

    /// The way to a neighbour on the uplink.
    pub(crate) fn way(&self, mac: [u8; 6]) -> NextHop {
        NextHop {
            interface: self.uplink,
            source_mac: MacAddress(UPLINK_MAC),
            destination_mac: MacAddress(mac),
        }
    }

    /// The container of this node.
    pub(crate) fn local(&self) -> Location {
        Location::Local(Container {
            ingress_address: ingress(5),
            address: CONTAINER,
            mac: MacAddress(CONTAINER_MAC),
            host_interface: self.container,
            gateway_mac: MacAddress(GATEWAY_MAC),
        })
    }

    /// A node with both services, each with one backend at a place.
    pub(crate) fn serving(&self, location: Location) -> Desired {
        let mut state = self.node();
        for key in [WEB, DNS] {
            serve(&mut state, key, &[(5, location)]);
        }
        state
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(mut datapath) = self.datapath.take() {
            let _ = datapath.detach();
        }
        let _ = fs::remove_dir_all(&self.options.pins);
        let _ = fs::remove_dir(&self.options.cgroup);
    }
}

/// Adds a service, answered at the node's address and the service address, whose replicas' ingress
/// addresses end in the numbers given.
pub(crate) fn serve(state: &mut Desired, key: ServiceKey, backends: &[(u8, Location)]) {
    let mut entry = ServiceEntry {
        id: format!("service-{}", key.port),
        name: "web".to_owned(),
        balance: Balance::default(),
        active: Vec::new(),
    };
    for (number, location) in backends {
        let name = backend_key(key, *number);
        entry.active.push(name);
        state.backends.insert(
            name,
            Backend {
                task: task(*number),
                task_name: format!("web.{number}"),
                slot: Some(u64::from(*number)),
                node: "node".to_owned(),
                node_name: "node".to_owned(),
                target_port: target(key).port(),
                location: *location,
                state: BackendState::Active,
                weight: 1,
            },
        );
    }
    state.services.insert(key, entry);
    for address in [NODE, SERVICE_ADDRESS] {
        state.frontends.insert(Frontend {
            address,
            service: key,
        });
    }
}

pub(crate) fn backend_key(service: ServiceKey, number: u8) -> BackendKey {
    BackendKey {
        service,
        address: ingress(number),
    }
}

/// Where clients dial a service.
pub(crate) fn frontend(key: ServiceKey) -> SocketAddrV4 {
    SocketAddrV4::new(NODE, key.port)
}

/// Where the container serves it.
pub(crate) fn target(key: ServiceKey) -> SocketAddrV4 {
    SocketAddrV4::new(CONTAINER, if key == WEB { 80 } else { 53 })
}

/// From the router to the node.
pub(crate) fn arriving() -> Macs {
    FROM_ROUTER
}

/// Into the container.
pub(crate) fn into_container() -> Macs {
    Macs {
        source: GATEWAY_MAC,
        destination: CONTAINER_MAC,
    }
}

/// Out of the container.
pub(crate) fn out_of_container() -> Macs {
    Macs {
        source: CONTAINER_MAC,
        destination: GATEWAY_MAC,
    }
}

/// Out of the uplink, to the router or to the peer.
pub(crate) fn leaving_to(mac: [u8; 6]) -> Macs {
    Macs {
        source: UPLINK_MAC,
        destination: mac,
    }
}

/// What this node sends to the peer about replica 5.
pub(crate) fn to_peer(service: ServiceKey, kind: u8, source_port: u16) -> Tunnel {
    Tunnel {
        macs: leaving_to(PEER_MAC),
        from: NODE,
        to: PEER,
        source_port,
        kind,
        vni: VNI,
        backend: SocketAddrV4::new(ingress(5), target(service).port()),
        tag: task_tag(&task(5)),
    }
}

/// What the peer sends to this node about replica 5.
pub(crate) fn from_peer(service: ServiceKey, kind: u8) -> Tunnel {
    Tunnel {
        macs: Macs {
            source: PEER_MAC,
            destination: UPLINK_MAC,
        },
        from: PEER,
        to: NODE,
        ..to_peer(service, kind, 0xc123)
    }
}

fn ingress(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, number)
}

fn task(number: u8) -> String {
    format!("task{number}")
}

fn run<P>(program: &P, frame: &[u8], context: &[u8], repeat: u32) -> (Output, u64)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
{
    let mut out = vec![0; 4096];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            repeat,
            ..TestRunOptions::default()
        })
        .unwrap_or_else(|error| panic!("the kernel refused a test run: {}", error_chain(&error)));
    out.truncate(result.data_size_out as usize);
    let output = Output {
        verdict: result.return_value,
        frame: out,
    };
    (output, result.duration.as_nanos() as u64)
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).expect("the interface was made above")
}

/// Where cgroup2 is mounted.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mount table can be read");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .expect("a mounted cgroup2: mount -t cgroup2 none /sys/fs/cgroup/unified")
}
