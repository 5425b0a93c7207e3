//! A node in a network namespace: interfaces, a pin directory, a cgroup, and the data path loaded into them.
//! All of it is gone at the end of the test.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddrV4,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::programs::{SchedClassifier, Xdp};
use mesh_agent::{
    datapath::{
        Datapath, DatapathError, TcChoice, Traffic, XdpChoice,
        ebpf::{EbpfDatapath, EbpfOptions},
    },
    host_facts::find_cgroup2,
    model::{
        BackendKey, Container, Desired, HostInterface, Limits, Location, MacAddress, NextHop, ReturnMode,
        ServiceKey, desired::Settings,
    },
    plan::plan,
};
use mesh_support::{
    command, error_chain,
    namespace::{disable_ipv6, in_new_network_and_mounts, mount_new, sysctl},
};
use nix::net::if_::if_nametoindex;

use crate::{
    cluster::{
        CONTAINER, CONTAINER_MAC, DNS, GATEWAY_MAC, MESH0_MAC, NODE, PEER, PEER_MAC, SERVICE_ADDRESS,
        UPLINK_MAC, VNI, WEB, arriving, from_peer_about, frontend, ingress, serve,
    },
    frames::{ACK, Packet, REPLY, SYN},
    run::{Entry, Output, XDP_TX, run},
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

/// Runs a test on a node of its own, in a thread whose namespaces end with it, with maps of other sizes
/// than the programs declare, by name.
#[track_caller]
pub fn on_a_small_node(map_sizes: &[(&'static str, u32)], test: impl FnOnce(&mut Node) + Send) {
    in_namespaces(|| test(&mut Node::new(None, 4096, map_sizes.to_vec())));
}

/// The same with another eBPF object than the agent's, and a flow table of another size.
#[track_caller]
pub fn on_a_node_with(object: Option<&[u8]>, flow_capacity: u32, test: impl FnOnce(&mut Node) + Send) {
    in_namespaces(|| test(&mut Node::new(object, flow_capacity, Vec::new())));
}

#[track_caller]
fn in_namespaces(test: impl FnOnce() + Send) {
    in_new_network_and_mounts(|| {
        mount_bpffs();
        test();
    })
    .expect("this test loads eBPF programs into network namespaces: run it as root");
}

fn mount_bpffs() {
    // Not every machine has one mounted.
    mount_new("bpf", Path::new(BPFFS)).expect("a bpf file system");
}

/// A node, its data path loaded.
pub struct Node {
    /// Whether the data path is the one that the node began with.
    is_first: bool,
    /// `None`: the agent's own.
    object: Option<Vec<u8>>,
    /// `None` only between a crash and the next load.
    datapath: Option<EbpfDatapath>,
    state: Desired,
    options: EbpfOptions,
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Interface index of the container's veth, the host's end.
    pub container: u32,
    /// Interface index of mesh0.
    pub mesh0: u32,
}

impl Node {
    /// A node in the calling thread's namespaces, which have no bpf file system yet.
    pub(crate) fn with_bpffs() -> Self {
        mount_bpffs();
        Self::new(None, 4096, Vec::new())
    }

    /// Takes back what has been applied and forgets what the programs have noted. Returns whether the node is
    /// now as it was at first.
    pub(crate) fn start_over(&mut self) -> bool {
        let Some(datapath) = self.datapath.as_mut().filter(|_| self.is_first) else {
            return false;
        };
        let nothing = Desired::default();
        let errors = datapath.apply(&plan(&self.state, &nothing));
        self.state = nothing;
        errors.is_empty() && datapath.start_over().is_ok()
    }

    fn new(object: Option<&[u8]>, flow_capacity: u32, map_sizes: Vec<(&'static str, u32)>) -> Self {
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
        let cgroup2 = find_cgroup2()
            .expect("the mount table can be read")
            .expect("a mounted cgroup2: mount -t cgroup2 none /sys/fs/cgroup/unified");
        let cgroup = cgroup2.join(&name);
        fs::create_dir(&cgroup).expect("a cgroup of the test's own");
        let options = EbpfOptions {
            pins: Path::new(BPFFS).join(&name),
            cgroup,
            xdp: XdpChoice::Native,
            tc: TcChoice::Auto,
            flow_capacity,
            flood_limit: None,
            geneve_port: 6081,
            service_address: SERVICE_ADDRESS,
            netns_cookie: 0,
            load_when_used: true,
            map_sizes,
            changed_maps: Vec::new(),
        };
        let mut node = Self {
            is_first: false,
            object: object.map(<[u8]>::to_vec),
            datapath: None,
            state: Desired::default(),
            options,
            uplink: index("up0"),
            container: index("box0"),
            mesh0: index("mesh0"),
        };
        node.load();
        node.is_first = true;
        node
    }

    /// Loads the data path, as an agent that starts.
    pub fn load(&mut self) {
        if let Err(error) = self.try_load() {
            panic!("{}", error_chain(&error));
        }
    }

    /// The same, where it may fail.
    ///
    /// # Errors
    /// That of the data path.
    pub fn try_load(&mut self) -> Result<(), DatapathError> {
        self.crash();
        self.state = Desired::default();
        let options = self.options.clone();
        self.datapath = Some(match &self.object {
            Some(object) => EbpfDatapath::load_object(object, options)?,
            None => EbpfDatapath::load(options)?,
        });
        Ok(())
    }

    /// A state in which services have these limits of new flows.
    #[must_use]
    pub fn limited(state: &Desired, limits: Limits) -> Desired {
        let mut state = state.clone();
        for service in state.services.values_mut() {
            service.limits = limits;
        }
        state
    }

    /// The same without a flood limit.
    #[must_use]
    pub fn without_flood_limit(state: &Desired) -> Desired {
        let limits = Limits {
            flood: Some(0),
            ..Limits::default()
        };
        Self::limited(state, limits)
    }

    /// How the data path is loaded the next time.
    pub fn options(&mut self) -> &mut EbpfOptions {
        self.is_first = false;
        &mut self.options
    }

    /// As if the agent were killed: what it has pinned stays.
    pub fn crash(&mut self) {
        self.is_first = false;
        self.datapath = None;
    }

    /// The data path that is loaded.
    pub fn datapath(&mut self) -> &mut EbpfDatapath {
        self.datapath.as_mut().expect("the data path is loaded")
    }

    /// The folder of the pins.
    pub fn pins(&self) -> &Path {
        &self.options.pins
    }

    /// The state that was applied last.
    pub fn state(&self) -> &Desired {
        &self.state
    }

    /// Applies a state, as the agent does.
    #[track_caller]
    pub fn apply(&mut self, state: &Desired) {
        let changes = plan(&self.state, state);
        let errors = self.datapath().apply(&changes);
        let errors: Vec<String> = errors.iter().map(|error| error_chain(error)).collect();
        assert!(errors.is_empty(), "{errors:?}");
        self.state = state.clone();
    }

    /// Feeds a frame to the XDP program, as if received on the uplink.
    pub fn xdp(&mut self, frame: &[u8]) -> Output {
        self.run_xdp("mesh_xdp", frame, 1).0
    }

    /// Opens a client's connection to a service whose replicas are on the peer; returns the replica's number.
    pub fn connect(&mut self, service: ServiceKey, client: SocketAddrV4) -> u8 {
        let sent = self.xdp(&Packet::tcp(arriving(), client, frontend(service), SYN).frame());
        assert_eq!(sent.verdict, XDP_TX, "a SYN of {client}");
        // The last byte of the backend's ingress address in the Geneve option.
        let replica = sent.frame[57];
        self.answer(service, client, replica);
        replica
    }

    /// Has a connection open whose SYN has gone to a remote replica.
    pub fn answer(&mut self, service: ServiceKey, client: SocketAddrV4, replica: u8) {
        let answer = Packet::tcp(arriving(), frontend(service), client, SYN | ACK);
        let answer = self.xdp(&from_peer_about(replica, service, REPLY).around(&answer));
        assert_eq!(answer.verdict, XDP_TX, "an answer to {client}");
        self.xdp(&Packet::tcp(arriving(), client, frontend(service), ACK).frame());
    }

    /// Runs an XDP program many times; returns the last output, and the nanoseconds each took on average.
    pub fn run_xdp(&mut self, name: &str, frame: &[u8], repeat: u32) -> (Output, u64) {
        refused(self.try_xdp(name, frame, repeat))
    }

    fn try_xdp(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<(Output, u64), String> {
        // `struct xdp_md`: data_end, ingress_ifindex.
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.uplink.to_ne_bytes());
        let program: &mut Xdp = self
            .datapath()
            .program(name)
            .expect("the program can be loaded")
            .try_into()
            .expect("an XDP program");
        run(program, frame, &context, repeat)
    }

    /// Feeds a frame to the program where it comes in.
    ///
    /// # Errors
    /// The kernel's, where it refuses the test run.
    pub fn feed(&mut self, entry: Entry, frame: &[u8]) -> Result<Output, String> {
        let (name, interface) = match entry {
            Entry::Xdp => return Ok(self.try_xdp("mesh_xdp", frame, 1)?.0),
            Entry::Uplink => ("mesh_uplink", self.uplink),
            Entry::Layer3 => ("mesh_layer3", self.uplink),
            Entry::Container => ("mesh_container", self.container),
            Entry::Local => ("mesh_local", self.mesh0),
        };
        Ok(self.try_tc(name, interface, frame, 0, 1)?.0)
    }

    /// Feeds a frame to the uplink's tc program.
    pub fn tc_uplink(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_uplink", self.uplink, frame, 0, 1).0
    }

    /// Feeds what GRO would make of some segments to the uplink's tc program.
    pub fn tc_uplink_aggregated(&mut self, frame: &[u8], segments: u32) -> Output {
        self.run_tc("mesh_uplink", self.uplink, frame, segments, 1).0
    }

    /// Feeds what the container sends to the tc program at the host end of its veth.
    pub fn tc_container(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_container", self.container, frame, 0, 1).0
    }

    /// Feeds what a local process sends to the tc program of mesh0.
    pub fn tc_mesh0(&mut self, frame: &[u8]) -> Output {
        self.run_tc("mesh_local", self.mesh0, frame, 0, 1).0
    }

    /// Runs a tc program many times; see [`Self::run_xdp`].
    pub fn run_tc(
        &mut self,
        name: &str,
        interface: u32,
        frame: &[u8],
        segments: u32,
        repeat: u32,
    ) -> (Output, u64) {
        refused(self.try_tc(name, interface, frame, segments, repeat))
    }

    fn try_tc(
        &mut self,
        name: &str,
        interface: u32,
        frame: &[u8],
        segments: u32,
        repeat: u32,
    ) -> Result<(Output, u64), String> {
        // `struct __sk_buff`: ifindex, gso_segs, gso_size.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&interface.to_ne_bytes());
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        let size: u32 = if segments == 0 { 0 } else { 1000 };
        context[176..180].copy_from_slice(&size.to_ne_bytes());
        let program: &mut SchedClassifier = self
            .datapath()
            .program(name)
            .expect("the program can be loaded")
            .try_into()
            .expect("a tc program");
        run(program, frame, &context, repeat)
    }

    /// Drops by hook and reason, those that are not zero.
    pub fn drops(&mut self) -> BTreeMap<(String, String), u64> {
        let counters = self.datapath().counters().expect("counters can be read");
        counters
            .drops
            .into_iter()
            .filter(|drop| drop.packets > 0)
            .map(|drop| ((drop.hook, drop.reason), drop.packets))
            .collect()
    }

    /// A backend's traffic.
    pub fn traffic(&mut self, key: BackendKey) -> Traffic {
        let counters = self.datapath().counters().expect("counters can be read");
        counters.backends[&key]
    }

    /// The state of a node with interfaces and a peer, and no service.
    pub fn without_services(&self) -> Desired {
        let interface = |index, mac| HostInterface {
            index,
            mac: Some(MacAddress(mac)),
            mtu: 1500,
            has_vlans: false,
        };
        Desired {
            macs: [MacAddress(UPLINK_MAC)].into(),
            uplinks: BTreeMap::from([("up0".to_owned(), interface(self.uplink, UPLINK_MAC))]),
            peers: BTreeMap::from([(PEER, Some(self.next_hop(PEER_MAC)))]),
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

    /// The next hop to a neighbour on the uplink.
    pub fn next_hop(&self, mac: [u8; 6]) -> NextHop {
        NextHop {
            interface: self.uplink,
            source_mac: MacAddress(UPLINK_MAC),
            destination_mac: MacAddress(mac),
            mtu: None,
        }
    }

    /// A backend in this node's container.
    pub fn local(&self) -> Location {
        Location::Local(Container {
            ingress_address: ingress(5),
            address: CONTAINER,
            mac: MacAddress(CONTAINER_MAC),
            host_interface: self.container,
            gateway_mac: MacAddress(GATEWAY_MAC),
        })
    }

    /// The state of a node with both services, each with one backend there.
    pub fn serving(&self, location: Location) -> Desired {
        let mut state = self.without_services();
        for key in [WEB, DNS] {
            serve(&mut state, key, &[(5, location)]);
        }
        state
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut datapath) = self.datapath.take() {
            let _ = datapath.detach();
        }
        let _ = fs::remove_dir_all(&self.options.pins);
        let _ = fs::remove_dir(&self.options.cgroup);
    }
}

fn refused(outcome: Result<(Output, u64), String>) -> (Output, u64) {
    outcome.unwrap_or_else(|error| panic!("the kernel refused a test run: {error}"))
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).expect("the interface was made above")
}
