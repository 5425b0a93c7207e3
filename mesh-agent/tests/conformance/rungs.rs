//! The rungs of the ladder of data paths, and what each of them can do. The only file that names the kinds of
//! data paths.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result, bail};
use mesh_agent::{
    datapath::{
        Datapath, Mode, TcChoice, XdpChoice,
        ebpf::{EbpfDatapath, EbpfOptions},
        ipvs::{IpvsDatapath, IpvsOptions, address::peers_mesh_addresses},
    },
    model::{Algorithm, NodeDatapath},
    probes::{Geneve, Medium},
};

use crate::world::{Family, Link};

/// Where connections of local processes are sent, on data paths that redirect them.
pub(crate) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);

/// The UDP port of the tunnel between nodes.
const TUNNEL_PORT: u16 = 6081;

/// One way to move packets, and what they come in by.
#[derive(Debug)]
pub(crate) struct Rung {
    /// Its name on the command line and in `MESH_DATAPATHS`, and the first part of its stories' names.
    pub(crate) name: &'static str,
    kind: Kind,
    /// The kernels it is meant for.
    kernels: Kernels,
    /// What nodes are connected by.
    pub(crate) link: Link,
    /// What clients speak.
    pub(crate) family: Family,
    pub(crate) capabilities: Capabilities,
}

#[derive(Debug)]
enum Kind {
    Ebpf {
        xdp: XdpChoice,
        tc: TcChoice,
        mode: Mode,
    },
    Ipvs,
}

/// The programs that decide what happens to packets: the same ones may run by several hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Programs {
    /// Of XDP, with those of tc beside them.
    Xdp,
    /// Of tc alone.
    Tc,
    /// The kernel's.
    Ipvs,
}

/// Which kernels must run a rung, unless the rungs to run are named.
#[derive(Debug)]
enum Kernels {
    /// All from this version on.
    Since(u32, u32),
    /// Those that were built with a module.
    WithModule(&'static str),
}

/// Where data paths may differ. What is not in this table must be the same on all of them.
#[derive(Debug)]
pub(crate) struct Capabilities {
    /// A replica on another node sees the client's own address, not the entry node's.
    pub(crate) shows_clients_to_remote_replicas: bool,
    /// The balancing algorithms it has.
    pub(crate) algorithms: &'static [Algorithm],
    /// Whether a client can be kept at its replica.
    pub(crate) affinity: bool,
    /// A node sends back what it cannot deliver, and the entry node gives it to another replica.
    pub(crate) sends_back: bool,
    /// A replica that does not answer is passed over.
    pub(crate) passes_over: bool,
    /// Answers to datagrams that a process or container of the node sends from a published port are its own.
    pub(crate) knows_own_datagrams: bool,
    /// Datagrams of every size and sender arrive, or their sender learns what does; not only those that
    /// clients send in fragments.
    pub(crate) takes_every_size: bool,
}

const EBPF: Capabilities = Capabilities {
    shows_clients_to_remote_replicas: true,
    algorithms: &Algorithm::ALL,
    affinity: true,
    sends_back: true,
    passes_over: true,
    knows_own_datagrams: true,
    takes_every_size: true,
};

const IPVS: Capabilities = Capabilities {
    shows_clients_to_remote_replicas: false,
    algorithms: &[
        Algorithm::RoundRobin,
        Algorithm::WeightedRoundRobin,
        Algorithm::Maglev,
        Algorithm::LeastConnection,
        Algorithm::WeightedLeastConnection,
    ],
    affinity: true,
    sends_back: false,
    passes_over: false,
    knows_own_datagrams: false,
    takes_every_size: false,
};

/// All of them, best first, and then those on other links than a card, and for clients that speak IPv6.
pub(crate) const LADDER: &[Rung] = &[
    Rung {
        name: "ebpf-native-tcx",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Native,
            tc: TcChoice::Tcx,
            mode: Mode::XdpNative,
        },
        kernels: Kernels::Since(6, 6),
        link: Link::Card,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    Rung {
        name: "ebpf-native-clsact",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Native,
            tc: TcChoice::Clsact,
            mode: Mode::XdpNative,
        },
        kernels: Kernels::Since(5, 15),
        link: Link::Card,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    Rung {
        name: "ebpf-generic-clsact",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Generic,
            tc: TcChoice::Clsact,
            mode: Mode::XdpGeneric,
        },
        kernels: Kernels::Since(5, 15),
        link: Link::Card,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    Rung {
        name: "ebpf-tc",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Off,
            tc: TcChoice::Auto,
            mode: Mode::Tc,
        },
        kernels: Kernels::Since(5, 15),
        link: Link::Card,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    Rung {
        name: "ipvs",
        kind: Kind::Ipvs,
        kernels: Kernels::WithModule("ip_vs"),
        link: Link::Card,
        family: Family::Ipv4,
        capabilities: IPVS,
    },
    // A VLAN device has no XDP in a driver, so none is used on the card below it either.
    Rung {
        name: "vlan-ebpf",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Native,
            tc: TcChoice::Auto,
            mode: Mode::Tc,
        },
        kernels: Kernels::WithModule("8021q"),
        link: Link::Vlan,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    // A bond has, where its cards do.
    Rung {
        name: "bond-ebpf-native",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Native,
            tc: TcChoice::Auto,
            mode: Mode::XdpNative,
        },
        kernels: Kernels::WithModule("bonding"),
        link: Link::Bond,
        family: Family::Ipv4,
        capabilities: EBPF,
    },
    Rung {
        name: "ipv6-ebpf-native",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Native,
            tc: TcChoice::Auto,
            mode: Mode::XdpNative,
        },
        kernels: Kernels::Since(5, 15),
        link: Link::Card,
        family: Family::Ipv6,
        capabilities: EBPF,
    },
    Rung {
        name: "ipv6-ebpf-tc",
        kind: Kind::Ebpf {
            xdp: XdpChoice::Off,
            tc: TcChoice::Auto,
            mode: Mode::Tc,
        },
        kernels: Kernels::Since(5, 15),
        link: Link::Card,
        family: Family::Ipv6,
        capabilities: EBPF,
    },
    Rung {
        name: "vlan-ipvs",
        kind: Kind::Ipvs,
        kernels: Kernels::WithModule("ip_vs"),
        link: Link::Vlan,
        family: Family::Ipv4,
        capabilities: IPVS,
    },
];

impl Rung {
    /// The data-path state that nodes on it announce.
    pub(crate) fn node_datapath(&self) -> NodeDatapath {
        match self.kind {
            Kind::Ebpf { .. } => NodeDatapath::Ebpf,
            Kind::Ipvs => NodeDatapath::Ipvs,
        }
    }

    fn programs(&self) -> Programs {
        match self.kind {
            Kind::Ebpf {
                mode: Mode::XdpNative | Mode::XdpGeneric,
                ..
            } => Programs::Xdp,
            Kind::Ebpf { .. } => Programs::Tc,
            Kind::Ipvs => Programs::Ipvs,
        }
    }

    /// Whether the kernel takes its time to load it.
    pub(crate) fn loads_slowly(&self) -> bool {
        matches!(self.kind, Kind::Ebpf { .. })
    }

    /// Whether connections of local processes need the device mesh0.
    pub(crate) fn needs_mesh0(&self) -> bool {
        match self.kind {
            Kind::Ebpf { .. } => true,
            Kind::Ipvs => false,
        }
    }

    /// Whether it uses IPVS's virtual services, of which other programs may have their own.
    pub(crate) fn has_virtual_services(&self) -> bool {
        match self.kind {
            Kind::Ebpf { .. } => false,
            Kind::Ipvs => true,
        }
    }

    /// The mode that each uplink must report.
    pub(crate) fn mode(&self) -> Mode {
        match self.kind {
            Kind::Ebpf { mode, .. } => mode,
            Kind::Ipvs => Mode::Ipvs,
        }
    }

    /// What carries the probes of a node to a peer.
    pub(crate) fn medium(&self, own: Ipv4Addr, peer: Ipv4Addr, vni: u32) -> Medium {
        match self.kind {
            Kind::Ebpf { .. } => Medium::Geneve(Geneve {
                vni,
                port: TUNNEL_PORT,
                ..Geneve::default()
            }),
            Kind::Ipvs => Medium::Tunnel(peers_mesh_addresses(own, [peer].into_iter())),
        }
    }

    /// Loads the data path into this thread's network namespace, and adopts what is there. With `next`, it is
    /// that of a later release, which has changed some maps.
    pub(crate) fn load(&self, cgroup: &Path, next: bool) -> Result<Box<dyn Datapath>> {
        match self.kind {
            Kind::Ebpf { xdp, tc, .. } => {
                let options = EbpfOptions {
                    pins: Path::new("/sys/fs/bpf").join("mesh"),
                    cgroup: cgroup.to_owned(),
                    xdp,
                    tc,
                    flow_capacity: 16_384,
                    flood_limit: None,
                    geneve_port: TUNNEL_PORT,
                    service_address: SERVICE_ADDRESS,
                    netns_cookie: mesh_agent::host_facts::own_netns_cookie()
                        .context("the kernel does not report the cookies of network namespaces")?,
                    load_when_used: true,
                    map_sizes: Vec::new(),
                    changed_maps: if next { vec!["NEXT_HOPS", "DROPS"] } else { vec![] },
                };
                Ok(Box::new(EbpfDatapath::load(options)?))
            }
            Kind::Ipvs => Ok(Box::new(IpvsDatapath::new(IpvsOptions {
                tunnel_port: TUNNEL_PORT,
                service_address: SERVICE_ADDRESS,
                ..IpvsOptions::default()
            })?)),
        }
    }
}

/// A rung to run, and which stories.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) rung: &'static Rung,
    /// Whether the stories about what the programs decide are left out: an earlier rung runs them with the
    /// same programs.
    pub(crate) hooks_only: bool,
}

/// The rungs to run: those named by `MESH_DATAPATHS` or on the command line with all stories, whether this
/// kernel has them or not; otherwise those meant for this kernel.
pub(crate) fn chosen(filter: Option<&str>) -> Result<Vec<Chosen>> {
    let whole = |rung| Chosen {
        rung,
        hooks_only: false,
    };
    if let Ok(names) = std::env::var("MESH_DATAPATHS") {
        let rungs = names.split(',').map(|name| by_name(name.trim()));
        return rungs.map(|rung| rung.map(whole)).collect();
    }
    if let Some(rung) = LADDER.iter().find(|rung| filter == Some(rung.name)) {
        return Ok(vec![whole(rung)]);
    }
    let names = nix::sys::utsname::uname()?;
    let release = names.release().to_string_lossy();
    let kernel = version(&release)?;
    let is_meant = |rung: &&Rung| match rung.kernels {
        Kernels::Since(major, minor) => kernel >= (major, minor),
        Kernels::WithModule(name) => has_module(&release, name),
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for rung in LADDER.iter().filter(is_meant) {
        let what = |rung: &Rung| (rung.programs(), rung.family);
        let runs_them = |earlier: &Chosen| what(earlier.rung) == what(rung);
        let hooks_only = chosen.iter().any(runs_them);
        chosen.push(Chosen { rung, hooks_only });
    }
    Ok(chosen)
}

fn by_name(name: &str) -> Result<&'static Rung> {
    let Some(rung) = LADDER.iter().find(|rung| rung.name == name) else {
        let known: Vec<_> = LADDER.iter().map(|rung| rung.name).collect();
        bail!(
            "there is no data path `{name}`; MESH_DATAPATHS may list {}",
            known.join(", ")
        );
    };
    Ok(rung)
}

fn version(release: &str) -> Result<(u32, u32)> {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    number()
        .zip(number())
        .with_context(|| format!("the kernel's release is `{release}`"))
}

/// Whether a module is built into the kernel, or can be loaded.
fn has_module(release: &str, name: &str) -> bool {
    let file = format!("/{name}.ko");
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        fs::read_to_string(format!("/lib/modules/{release}/{list}")).is_ok_and(|list| list.contains(&file))
    })
}
