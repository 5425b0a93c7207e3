//! The programs that others call: the index of each in the map of programs, and its name in the object.

/// Programs that the hooks' programs call, and that call those again with another packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Called {
    /// For exceptional packets of an uplink with Ethernet headers.
    ExceptionalUplink = 0,
    /// Of an uplink without.
    ExceptionalLayer3 = 1,
    /// Of a container.
    ExceptionalContainer = 2,
    /// Of mesh0.
    ExceptionalLocal = 3,
    /// For IPv6 packets of an uplink.
    ToIpv4Uplink = 4,
    /// Of a container.
    ToIpv4Container = 5,
    /// For what goes to IPv6 clients.
    ToIpv6 = 6,
    /// The program of an uplink, for what was IPv6.
    Uplink = 7,
    /// The program of a container, for what was IPv6.
    Container = 8,
}

/// How many there are.
pub const CALLED_PROGRAMS: u32 = Called::ALL.len() as u32;

impl Called {
    /// Every program.
    pub const ALL: [Self; 9] = [
        Self::ExceptionalUplink,
        Self::ExceptionalLayer3,
        Self::ExceptionalContainer,
        Self::ExceptionalLocal,
        Self::ToIpv4Uplink,
        Self::ToIpv4Container,
        Self::ToIpv6,
        Self::Uplink,
        Self::Container,
    ];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExceptionalUplink => "exceptional_uplink",
            Self::ExceptionalLayer3 => "exceptional_layer3",
            Self::ExceptionalContainer => "exceptional_container",
            Self::ExceptionalLocal => "exceptional_local",
            Self::ToIpv4Uplink => "to_ipv4_uplink",
            Self::ToIpv4Container => "to_ipv4_container",
            Self::ToIpv6 => "to_ipv6",
            Self::Uplink => "mesh_uplink",
            Self::Container => "mesh_container",
        }
    }
}
