//! Who may come in: the compiled source rules of services.

use crate::bytes::Be32;

/// Which source rules a service has, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Policy(u16);

impl Policy {
    /// Everyone may come in.
    pub const NONE: Self = Self(0);
    /// The highest id.
    pub const MAX_ID: u16 = 0x7fff;
    const BY_INTERFACE: u16 = 0x8000;

    /// The policy of an id from 1 to [`Self::MAX_ID`], whose rules are kept by interface or not.
    pub const fn new(id: u16, by_interface: bool) -> Self {
        Self(id & Self::MAX_ID | if by_interface { Self::BY_INTERFACE } else { 0 })
    }

    /// Its id; 0 for [`Self::NONE`].
    #[inline(always)]
    pub const fn id(self) -> u16 {
        self.0 & Self::MAX_ID
    }

    /// Whether its rules tell interfaces apart.
    #[inline(always)]
    pub const fn is_by_interface(self) -> bool {
        self.0 & Self::BY_INTERFACE != 0
    }
}

/// Some clients of a policy: the key of a longest-prefix match, of which all but the source is always
/// compared whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceRule {
    /// The policy's id.
    pub policy: u32,
    /// The interface that the packet arrives on; 0 where the policy does not tell them apart, and
    /// [`Self::CONTAINERS`] for all those that lead to containers.
    pub interface: u32,
    /// Zero. With it, and with the length of the prefix before it, the key is as long as its alignment asks.
    pub padding: u32,
    /// The client's address, or its network: IPv6, or IPv4 mapped to it.
    pub source: [Be32; 4],
}

impl SourceRule {
    /// Stands for the host ends of all containers' veths.
    pub const CONTAINERS: u32 = u32::MAX;
    /// Bits of the key before the source.
    pub const POLICY_BITS: u32 = 96;
    /// Bits of the key of a single client.
    pub const BITS: u32 = Self::POLICY_BITS + 128;
}

/// What happens to a client's packets: one verdict on those that open a flow, and one on those of open flows,
/// which hold too when a rule changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct SourceVerdicts(u32);

impl SourceVerdicts {
    /// Both verdicts.
    pub const fn new(opening: SourceVerdict, open: SourceVerdict) -> Self {
        Self(opening.0 | open.0 << 8)
    }

    /// On packets that open a flow.
    #[inline(always)]
    pub const fn opening(self) -> SourceVerdict {
        SourceVerdict(self.0 & 0xff)
    }

    /// On packets of open flows.
    #[inline(always)]
    pub const fn open(self) -> SourceVerdict {
        SourceVerdict(self.0 >> 8 & 0xff)
    }
}

/// What happens to a packet because of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SourceVerdict(u32);

impl SourceVerdict {
    /// It may come in.
    pub const ACCEPT: Self = Self(0);
    /// It is dropped without an answer.
    pub const DROP: Self = Self(1);
    /// It is refused: TCP with RST, UDP with ICMP.
    pub const REJECT: Self = Self(2);
}

const _: () = assert!(size_of::<Policy>() == 2);
const _: () = assert!(size_of::<SourceRule>() * 8 == SourceRule::BITS as usize);
const _: () = assert!(size_of::<SourceVerdicts>() == 4);
