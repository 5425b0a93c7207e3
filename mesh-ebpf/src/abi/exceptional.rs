//! The programs of exceptional packets: the index of each in the map of programs, and its name in the object.

/// Programs that the hooks' programs call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Exceptional {
    /// Of an uplink with Ethernet headers.
    Uplink = 0,
    /// Of an uplink without.
    Layer3 = 1,
    /// Of a container.
    Container = 2,
    /// Of mesh0.
    Local = 3,
}

/// How many there are.
pub const EXCEPTIONAL_PROGRAMS: u32 = Exceptional::ALL.len() as u32;

impl Exceptional {
    /// Every program.
    pub const ALL: [Self; 4] = [Self::Uplink, Self::Layer3, Self::Container, Self::Local];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uplink => "exceptional_uplink",
            Self::Layer3 => "exceptional_layer3",
            Self::Container => "exceptional_container",
            Self::Local => "exceptional_local",
        }
    }
}
