//! Synchronous netlink: one request with its acknowledgement, dumps, many requests at once, and transactions.
//! For every data path, discovery and the doctor. Knows no protocol's messages and imports nothing of ours.
//!
//! The kernel handles a request inside the `send` system call, so every answer to it is there when `send`
//! returns (the next part of a dump, when the part before it has been read). Nothing here waits.

pub(crate) mod attributes;
mod datagram;
mod error;
mod message;

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

use self::{
    datagram::{Answer, Content, answers, append, malformed},
    error::DUMP_ATTEMPTS,
};
pub use self::{
    error::{KernelError, NetlinkError},
    message::Message,
};

/// Room for one datagram from the kernel; the largest it makes for a dump is 32 KiB.
const RECEIVE_BYTES: usize = 1 << 16;
/// Size up to which a datagram fits into the send buffer as it is.
const ORDINARY_BYTES: usize = 1 << 16;
/// Requests sent at once: their acknowledgements must fit into the socket's receive buffer.
const REQUESTS_AT_ONCE: usize = 64;

/// A socket of one netlink protocol, in the network namespace of the thread that opened it.
pub struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    /// Opens a socket. The protocol is one of `netlink_sys::protocols`.
    ///
    /// # Errors
    /// When the kernel does not have the protocol or does not allow the socket.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let opened = |error| NetlinkError::Open(protocol, error);
        let mut socket = Socket::new(protocol).map_err(opened)?;
        socket.bind_auto().map_err(opened)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(opened)?;
        // Errors repeat only the header of the request, and come with a text.
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

    /// Sends requests that do not depend on one another; the results are in the same order. A refusal does
    /// not keep later requests from being tried.
    ///
    /// # Errors
    /// When the exchange itself failed; the kernel may have carried some requests out by then.
    pub fn requests(&mut self, messages: &[Message]) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        let mut results = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(REQUESTS_AT_ONCE) {
            let first = self.send(chunk, NLM_F_ACK)?;
            let mut answers = vec![None; chunk.len()];
            while answers.iter().any(Option::is_none) {
                for answer in self.receive()?.ok_or(NetlinkError::Unanswered)? {
                    if let Content::Acknowledged(result) = answer.content
                        && let Some(slot) = answers.get_mut(answer.sequence.wrapping_sub(first) as usize)
                    {
                        *slot = Some(result);
                    }
                }
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends a request that one message answers, e.g. a look-up by key; `None` if the kernel only
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

    /// Requests a list.
    ///
    /// # Errors
    /// When the kernel refuses it, or changes interrupted every attempt.
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

    /// Sends messages in one datagram, for protocols that treat a datagram as a transaction (nfnetlink
    /// between its begin and end messages). `NLM_F_REQUEST` is added to the messages' flags.
    ///
    /// # Errors
    /// Names the first message that was refused. Whether the others took effect depends on the protocol.
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

    /// Sends messages in one datagram; returns the sequence number of the first.
    fn send(&mut self, messages: &[Message], flags: u16) -> Result<u32, NetlinkError> {
        // Discard what an earlier, failed exchange left.
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
        // The send buffer must hold the whole datagram. Its default size is too small only for large
        // transactions.
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
            Ok(length) if length > datagram.len() => {
                Err(malformed(format!("a datagram of {length} bytes from the kernel")))
            }
            Ok(_) => answers(&datagram).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(NetlinkError::Receive(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        route::RouteMessage,
    };
    use netlink_sys::protocols::NETLINK_ROUTE;
    use nix::errno::Errno;

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
    fn a_look_up_is_answered_by_one_message() {
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
    fn a_refusal_carries_the_kernels_error() {
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
}
