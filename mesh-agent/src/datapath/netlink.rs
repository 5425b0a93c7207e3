//! Synchronous netlink: one request with its acknowledgement, dumps, many requests at once, and
//! transactions. For every data path and the doctor; knows no protocol's messages and imports nothing of ours.
//!
//! The kernel works through a request inside the `send` system call, so every answer to it is there when
//! `send` returns (a dump's next part when the one before has been read). Nothing here waits.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::SndBufForce},
};

/// Flag of an error message whose attributes say more (`NLM_F_ACK_TLVS`).
const ACK_ATTRIBUTES: u16 = 0x200;
/// Attribute of an error message that holds a text (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;
/// Bytes of a message's header, and of the error code before the header that an error repeats.
const HEADER_BYTES: usize = 16;
const ERROR_CODE_BYTES: usize = 4;
/// Room for one datagram from the kernel; the largest it makes for a dump is 32 KiB.
const RECEIVE_BYTES: usize = 1 << 16;
/// What a datagram to the kernel may have without asking for room.
const ORDINARY_BYTES: usize = 1 << 16;
/// Requests sent at once, so that their acknowledgements fit into the socket's receive buffer.
const REQUESTS_AT_ONCE: usize = 64;
/// How often a dump is begun again because what it lists has changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

/// One message to or from the kernel; its header but for what the connection fills in itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; `NLM_F_REQUEST` and what the way of sending needs are added.
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

/// A netlink operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket of protocol {0}; does the kernel have it, is AF_NETLINK allowed?")]
    Open(isize, #[source] io::Error),
    /// The request did not reach the kernel.
    #[error("cannot send a netlink request")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("cannot read the answer to a netlink request")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error(transparent)]
    Refused(#[from] KernelError),
    /// The kernel refused one message of a transaction, and so all of it.
    #[error("message {index} of the transaction was refused")]
    TransactionRefused {
        /// Which message, from 0.
        index: usize,
        /// What the kernel said.
        source: KernelError,
    },
    /// The answer is not what the protocol says.
    #[error("cannot understand the kernel's answer")]
    Malformed(#[source] DecodeError),
    /// The kernel has answered less than the protocol promises.
    #[error("the kernel did not acknowledge a netlink request")]
    Unanswered,
    /// What a dump lists changed each time while it was listed.
    #[error(
        "a netlink dump was interrupted by changes {DUMP_ATTEMPTS} times; is something changing it all the time?"
    )]
    Unsteady,
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) | Self::TransactionRefused { source: error, .. } => Some(error.errno),
            Self::Open(_, error) => error.raw_os_error().map(Errno::from_raw),
            Self::Send(_) | Self::Receive(_) | Self::Malformed(_) | Self::Unanswered | Self::Unsteady => None,
        }
    }
}

/// The kernel's own words for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", refusal(.errno, .text.as_deref()))]
pub struct KernelError {
    /// The error number.
    pub errno: Errno,
    /// The text that newer kernels add.
    pub text: Option<String>,
}

fn refusal(errno: &Errno, text: Option<&str>) -> String {
    match text {
        Some(text) => format!("{text} ({errno})"),
        None => errno.to_string(),
    }
}

/// A socket of one netlink protocol, in the network namespace of the thread that opened it.
pub struct Connection {
    socket: Socket,
    sequence: u32,
}

/// An answer that belongs to a request.
struct Answer {
    sequence: u32,
    content: Content,
}

enum Content {
    /// An acknowledgement, or why there is none.
    Acknowledged(Result<(), KernelError>),
    /// A dump is complete.
    Done(Result<(), KernelError>),
    Message(Message),
}

impl Connection {
    /// Opens a socket; protocols are numbered as in `netlink_sys::protocols`.
    ///
    /// # Errors
    /// When the kernel does not have the protocol or does not allow the socket.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let opened = |error| NetlinkError::Open(protocol, error);
        let mut socket = Socket::new(protocol).map_err(opened)?;
        socket.bind_auto().map_err(opened)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(opened)?;
        // Errors repeat the header of what they answer only, and say why in words.
        socket.set_cap_ack(true).map_err(opened)?;
        socket.set_ext_ack(true).map_err(opened)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn request(&mut self, message: &Message) -> Result<(), NetlinkError> {
        match self.requests(std::slice::from_ref(message))?.pop() {
            Some(result) => Ok(result?),
            None => Err(NetlinkError::Unanswered),
        }
    }

    /// Sends requests that do not depend on one another's success; the results are in their order. A
    /// refusal does not keep the later ones from being tried.
    ///
    /// # Errors
    /// When the kernel could not be asked at all; some requests may have been granted then.
    pub fn requests(&mut self, messages: &[Message]) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        let mut results = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(REQUESTS_AT_ONCE) {
            let first = self.send(chunk, NLM_F_ACK)?;
            let mut answers = vec![None; chunk.len()];
            while answers.iter().any(Option::is_none) {
                for answer in self.receive()?.ok_or(NetlinkError::Unanswered)? {
                    if let Content::Acknowledged(result) = answer.content
                        && let Some(place) = answers.get_mut(answer.sequence.wrapping_sub(first) as usize)
                    {
                        *place = Some(result);
                    }
                }
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends a request that is answered by one message, e.g. a look-up by key; none if the kernel only
    /// acknowledged it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn get(&mut self, message: &Message) -> Result<Option<Message>, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(message), NLM_F_ACK)?;
        let mut found = None;
        loop {
            for answer in self.receive()?.ok_or(NetlinkError::Unanswered)? {
                match answer.content {
                    _ if answer.sequence != sequence => {}
                    Content::Message(message) => found = Some(message),
                    Content::Acknowledged(result) | Content::Done(result) => {
                        result?;
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// When the kernel refuses it, or it never held still for long enough to be listed.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Message>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.dump_once(message)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unsteady)
    }

    fn dump_once(&mut self, message: &Message) -> Result<Option<Vec<Message>>, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(message), NLM_F_DUMP)?;
        let mut list = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in self.receive()?.ok_or(NetlinkError::Unanswered)? {
                match answer.content {
                    _ if answer.sequence != sequence => {}
                    Content::Message(message) => {
                        interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                        list.push(message);
                    }
                    Content::Acknowledged(result) | Content::Done(result) => {
                        result?;
                        return Ok((!interrupted).then_some(list));
                    }
                }
            }
        }
    }

    /// Sends messages in one datagram, for protocols that take one as a transaction (nfnetlink with its
    /// begin and end messages in place). The flags are sent as they are but for `NLM_F_REQUEST`.
    ///
    /// # Errors
    /// With the first message that was refused. Whether the rest stands is the protocol's business.
    pub fn transaction(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let first = self.send(messages, 0)?;
        let mut refused: Option<(usize, KernelError)> = None;
        while let Some(answers) = self.receive()? {
            for answer in answers {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if let Content::Acknowledged(Err(error)) = answer.content
                    && index < messages.len()
                    && refused.as_ref().is_none_or(|(earlier, _)| index < *earlier)
                {
                    refused = Some((index, error));
                }
            }
        }
        refused.map_or(Ok(()), |(index, source)| {
            Err(NetlinkError::TransactionRefused { index, source })
        })
    }

    /// Sends messages in one datagram, numbered from what is returned.
    fn send(&mut self, messages: &[Message], flags: u16) -> Result<u32, NetlinkError> {
        // Whatever an earlier, failed exchange has left is not for this one.
        while self.receive()?.is_some() {}
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            append(
                &mut datagram,
                message,
                message.flags | flags | NLM_F_REQUEST,
                self.sequence,
            );
        }
        // The send buffer must hold the datagram whole. Its usual size is enough but for large transactions.
        if datagram.len() > ORDINARY_BYTES {
            setsockopt(&self.socket, SndBufForce, &datagram.len().saturating_mul(2))
                .map_err(|errno| NetlinkError::Send(errno.into()))?;
        }
        self.socket.send(&datagram, 0).map_err(NetlinkError::Send)?;
        Ok(first)
    }

    /// Reads one datagram; `None` when there is none.
    fn receive(&mut self) -> Result<Option<Vec<Answer>>, NetlinkError> {
        let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
        match self
            .socket
            .recv(&mut datagram, libc::MSG_DONTWAIT | libc::MSG_TRUNC)
        {
            Ok(length) if length > datagram.len() => Err(malformed(format!(
                "{length} bytes in one datagram of the kernel's"
            ))),
            Ok(_) => answers(&datagram).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(NetlinkError::Receive(error)),
        }
    }
}

fn append(datagram: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = HEADER_BYTES + message.payload.len();
    datagram.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    datagram.extend(message.kind.to_ne_bytes());
    datagram.extend(flags.to_ne_bytes());
    datagram.extend(sequence.to_ne_bytes());
    datagram.extend(0_u32.to_ne_bytes());
    datagram.extend(&message.payload);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

/// Takes a datagram apart.
fn answers(datagram: &[u8]) -> Result<Vec<Answer>, NetlinkError> {
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

/// The error code that an error or a dump's end carries, with its text.
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

fn malformed(what: impl Into<String>) -> NetlinkError {
    NetlinkError::Malformed(what.into().into())
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        route::RouteMessage,
    };
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::*;

    fn connection() -> Connection {
        Connection::open(NETLINK_ROUTE).unwrap()
    }

    #[test]
    fn a_dump_lists_everything() {
        let message = Message::encode(&RouteNetlinkMessage::GetLink(LinkMessage::default()), 0);
        let names: Vec<String> = connection()
            .dump(&message)
            .unwrap()
            .iter()
            .filter_map(|message| match message.decode().unwrap() {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .flat_map(|link| link.attributes)
            .filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .collect();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
    }

    #[test]
    fn a_look_up_answers_with_one_message() {
        let mut loopback = LinkMessage::default();
        loopback.header.index = 1;
        let message = Message::encode(&RouteNetlinkMessage::GetLink(loopback), 0);
        let answer = connection().get(&message).unwrap().unwrap();
        assert!(matches!(
            answer.decode::<RouteNetlinkMessage>().unwrap(),
            RouteNetlinkMessage::NewLink(link) if link.header.index == 1
        ));
    }

    #[test]
    fn each_request_has_its_own_result() {
        let existing = |index: i32| {
            let mut link = LinkMessage::default();
            link.header.index = u32::try_from(index).unwrap();
            Message::encode(&RouteNetlinkMessage::GetLink(link), 0)
        };
        let messages: Vec<Message> = (0..200)
            .map(|number| existing(if number % 2 == 0 { 1 } else { i32::MAX }))
            .collect();
        let results = connection().requests(&messages).unwrap();
        for (number, result) in results.iter().enumerate() {
            match result {
                Ok(()) => assert_eq!(number % 2, 0),
                Err(error) => assert_eq!((number % 2, error.errno), (1, Errno::ENODEV)),
            }
        }
        assert_eq!(results.len(), messages.len());
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let empty = Message::encode(&RouteNetlinkMessage::NewRoute(RouteMessage::default()), 0);
        let mut connection = connection();
        let error = connection.request(&empty).unwrap_err();
        assert!(error.errno().is_some(), "{error}");
        let NetlinkError::TransactionRefused { index, .. } =
            connection.transaction(&[empty.clone(), empty]).unwrap_err()
        else {
            panic!("the second message was tried although the first was refused");
        };
        assert_eq!(index, 0);
    }

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
    fn nonsense_is_refused_rather_than_read() {
        for datagram in [&[0_u8; 3][..], &[255; 16], &[0; 16]] {
            assert!(answers(datagram).is_err(), "{datagram:?}");
        }
    }
}
