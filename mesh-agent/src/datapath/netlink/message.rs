//! One netlink message, with its typed content encoded. Knows no protocol.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::error::NetlinkError;

/// Bytes of a message's header.
pub(super) const HEADER_BYTES: usize = 16;

/// One message to or from the kernel, without the header fields that the connection fills in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; the connection adds `NLM_F_REQUEST` and what the kind of exchange needs.
    pub flags: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// Encodes a message of a typed protocol, e.g. rtnetlink.
    #[must_use]
    pub fn encode(message: &impl NetlinkSerializable, flags: u16) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        Self {
            kind: message.message_type(),
            flags,
            payload,
        }
    }

    /// Decodes a message of a typed protocol.
    ///
    /// # Errors
    /// When the bytes are not such a message.
    pub fn decode<M>(&self) -> Result<M, NetlinkError>
    where
        M: NetlinkDeserializable,
        M::Error: std::fmt::Display,
    {
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        header.flags = self.flags;
        header.length = u32::try_from(HEADER_BYTES + self.payload.len()).unwrap_or(u32::MAX);
        M::deserialize(&header, &self.payload)
            .map_err(|error| NetlinkError::Malformed(error.to_string().into()))
    }
}
