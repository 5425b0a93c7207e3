//! What shall become of a packet: first decided ([`Decision`], nothing written yet), then done
//! ([`Action`], what is left for the hook to return). Imports `abi` and `tables`.

use crate::{
    abi::{Backend, DropReason},
    tables::FlowEntry,
};

/// What shall become of a packet. Deciding may open a flow; it does not touch the packet.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'a> {
    /// Not the mesh's: the kernel goes on with it.
    Pass,
    /// Drop and count.
    Drop(DropReason),
    /// Tell the sender that nobody is there (TCP: RST; UDP: ICMP port unreachable), and count.
    Refuse(DropReason),
    /// Tell the sender that it does not fit into the tunnel (ICMP "fragmentation needed"), and count.
    TooBig,
    /// To a container of this node.
    Deliver {
        /// The flow.
        flow: FlowEntry,
        /// The container.
        backend: &'a Backend,
        /// Whether it came encapsulated.
        decapsulate: bool,
    },
    /// To the node of a remote backend.
    Forward {
        /// The flow.
        flow: FlowEntry,
        /// The backend.
        backend: &'a Backend,
    },
    /// A reply of a local backend to the client, or to the entry node.
    Reply {
        /// The flow (its entry for replies).
        flow: FlowEntry,
    },
    /// An encapsulated reply, to this node's client.
    Return {
        /// The flow.
        flow: FlowEntry,
    },
}

/// What the hook returns, the packet being ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel goes on with it.
    Pass,
    /// Drop; counted already.
    Drop,
    /// Out of an interface.
    Transmit {
        /// Interface index.
        interface: u32,
    },
    /// Out of the interface it came from (for mesh0: back into it), as an answer.
    Answer,
    /// Into the container at the other end of a veth.
    IntoContainer {
        /// Interface index of the host end.
        interface: u32,
    },
    /// Into this node's own stack, as if received on an interface.
    IntoHost {
        /// Interface index.
        interface: u32,
    },
    /// Out of an interface, once the kernel has resolved the neighbour (tc only).
    Route {
        /// Interface index.
        interface: u32,
    },
}
