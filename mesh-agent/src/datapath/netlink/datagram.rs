//! Datagrams of netlink messages: put together for the kernel, and its answers taken apart.

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NlasIterator};
use nix::errno::Errno;

use super::{
    error::{KernelError, NetlinkError},
    message::{HEADER_BYTES, Message},
};

/// Flag of an error message that has attributes with details (`NLM_F_ACK_TLVS`).
const ACK_ATTRIBUTES: u16 = 0x200;
/// Attribute of an error message that holds a text (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;
/// Bytes of the error code before the header that an error repeats.
const ERROR_CODE_BYTES: usize = 4;

/// An answer to a request.
pub(super) struct Answer {
    pub(super) sequence: u32,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// An acknowledgement, or why there is none.
    Acknowledged(Result<(), KernelError>),
    /// A dump is complete.
    Done(Result<(), KernelError>),
    /// One item of a dump, or the answer to a look-up.
    Message(Message),
}

/// Appends a message to a datagram.
pub(super) fn append(datagram: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = HEADER_BYTES + message.payload.len();
    datagram.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    datagram.extend(message.kind.to_ne_bytes());
    datagram.extend(flags.to_ne_bytes());
    datagram.extend(sequence.to_ne_bytes());
    datagram.extend(0_u32.to_ne_bytes());
    datagram.extend(&message.payload);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

/// Parses a datagram from the kernel.
pub(super) fn answers(datagram: &[u8]) -> Result<Vec<Answer>, NetlinkError> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let buffer = NetlinkBuffer::new_checked(rest).map_err(NetlinkError::Malformed)?;
        let length = buffer.length() as usize;
        let payload = rest
            .get(HEADER_BYTES..length)
            .ok_or_else(|| malformed("a short message"))?;
        let content = match buffer.message_type() {
            NLMSG_NOOP => None,
            NLMSG_ERROR => Some(Content::Acknowledged(result(payload, buffer.flags())?)),
            NLMSG_DONE if payload.is_empty() => Some(Content::Done(Ok(()))),
            NLMSG_DONE => Some(Content::Done(result(payload, 0)?)),
            kind => Some(Content::Message(Message {
                kind,
                flags: buffer.flags(),
                payload: payload.to_vec(),
            })),
        };
        if let Some(content) = content {
            answers.push(Answer {
                sequence: buffer.sequence_number(),
                content,
            });
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(answers)
}

/// The error code of an error message or of the end of a dump, with its text.
fn result(payload: &[u8], flags: u16) -> Result<Result<(), KernelError>, NetlinkError> {
    let code = payload
        .first_chunk()
        .map(|bytes: &[u8; ERROR_CODE_BYTES]| i32::from_ne_bytes(*bytes))
        .ok_or_else(|| malformed("an error without its code"))?;
    if code >= 0 {
        return Ok(Ok(()));
    }
    let attributes = match flags & ACK_ATTRIBUTES {
        0 => &[],
        _ => payload.get(ERROR_CODE_BYTES + HEADER_BYTES..).unwrap_or_default(),
    };
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_TEXT)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches('\0')
                .to_owned()
        });
    Ok(Err(KernelError {
        errno: Errno::from_raw(code.saturating_neg()),
        text,
    }))
}

pub(super) fn malformed(what: impl Into<String>) -> NetlinkError {
    NetlinkError::Malformed(what.into().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_error_is_read() {
        let mut payload = (-libc::EPERM).to_ne_bytes().to_vec();
        payload.extend([0; HEADER_BYTES]);
        payload.extend(9_u16.to_ne_bytes());
        payload.extend(ERROR_TEXT.to_ne_bytes());
        payload.extend(b"busy\0\0\0\0");
        let error = result(&payload, ACK_ATTRIBUTES).unwrap().unwrap_err();
        assert_eq!(error.text.as_deref(), Some("busy"));
        assert_eq!(error.to_string(), "busy (EPERM: Operation not permitted)");
        let error = result(&payload, 0).unwrap().unwrap_err();
        assert_eq!(error.text, None, "without the flag, what follows is the request");
    }

    #[test]
    fn malformed_datagrams_are_refused() {
        for datagram in [&[0_u8; 3][..], &[255; 16], &[0; 16]] {
            assert!(answers(datagram).is_err(), "{datagram:?}");
        }
    }
}
