//! The servers and clients of the stories, by TCP and UDP. Knows nothing of the mesh.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use etherparse::{IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::netns::Netns;

/// The TCP port of every server.
pub(crate) const TCP_PORT: u16 = 80;
/// The UDP port of every server.
pub(crate) const UDP_PORT: u16 = 53;
/// How long a client waits for an answer. Generous, for emulated machines: only failures take that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Answers in one namespace by IPv4 and IPv6, with its name and the client's address as it sees it.
pub(crate) struct Server {
    listener: TcpListener,
    datagrams: UdpSocket,
    ended: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts answering.
    pub(crate) fn start(netns: &Netns, name: &str) -> Result<Self> {
        let (listener, datagrams) = netns.enter(|| -> io::Result<_> {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, TCP_PORT))?;
            Ok((listener, UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP_PORT))?))
        })?;
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = listener.try_clone()?;
        let receiving = datagrams.try_clone()?;
        let (named, end) = (name.to_owned(), Arc::clone(&ended));
        let tcp = thread::spawn(move || accept(&accepting, &named));
        let named = name.to_owned();
        let udp = thread::spawn(move || echo(&receiving, &named, &end));
        Ok(Self {
            listener,
            datagrams,
            ended,
            threads: vec![tcp, udp],
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Ends `accept` and `recv_from`, the latter although it returns an error: the socket is not
        // connected. Connections end with their clients.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        let _ = SockRef::from(&self.datagrams).shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, name: &str) {
    while let Ok((stream, peer)) = listener.accept() {
        let name = name.to_owned();
        thread::spawn(move || serve(stream, peer, &name));
    }
}

/// One connection: answers `who` with name and peer, `get N` with N bytes, `put N` and N bytes with how many
/// of them are right.
fn serve(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    // Ends this thread if the client vanishes.
    stream.set_read_timeout(Some(PATIENCE * 90))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end().split_once(' ') {
            None => writer.write_all(format!("{name} {}\n", plain(peer)).as_bytes())?,
            Some(("get", count)) => writer.write_all(&pattern(number(count)?))?,
            Some((_, count)) => {
                let mut bytes = vec![0; number(count)?];
                reader.read_exact(&mut bytes)?;
                writer.write_all(format!("{}\n", right(&bytes)).as_bytes())?;
            }
        }
    }
}

/// An IPv4 client has an IPv6 address at a socket that takes both.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}

/// The period of [`pattern`] is prime, so that a lost segment is noticed.
const PERIOD: usize = 251;

/// Bytes in a known order.
fn pattern(count: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..PERIOD).map(|index| index as u8).collect();
    let mut bytes = period.repeat(count.div_ceil(PERIOD));
    bytes.truncate(count);
    bytes
}

/// How many bytes are in periods that arrived as they were sent. Compared by the period, not by the byte: the
/// suite is not optimised, and runs under emulation.
fn right(bytes: &[u8]) -> usize {
    let period = pattern(PERIOD);
    bytes
        .chunks(PERIOD)
        .filter(|chunk| *chunk == &period[..chunk.len()])
        .map(<[u8]>::len)
        .sum()
}

/// Answers with name and peer, in as many bytes as the question had if those suffice.
fn echo(socket: &UdpSocket, name: &str, ended: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        // Errors are about clients that are gone.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{name} {}", plain(peer)).into_bytes();
            answer.resize(length.max(answer.len()), b'\n');
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The server's name.
    pub(crate) replica: String,
    /// The client's address as the server sees it.
    pub(crate) seen: SocketAddr,
    /// The machine was so busy that the client sent its SYN again, which is a new choice of a replica.
    late: bool,
}

impl Answer {
    fn parse(text: &str) -> io::Result<Self> {
        text.trim_end()
            .split_once(' ')
            .and_then(|(name, seen)| {
                Some(Self {
                    replica: name.to_owned(),
                    seen: seen.parse().ok()?,
                    late: false,
                })
            })
            .ok_or_else(|| io::Error::other(format!("the server answered `{text}`")))
    }
}

/// Any address of the family of a target.
fn any(target: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, port)
}

/// A TCP connection that stays open.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from any address and port.
    pub(crate) fn open(netns: &Netns, target: SocketAddr) -> io::Result<Self> {
        Self::open_from(netns, any(target, 0), target)
    }

    /// Connects from an address and a port; 0 is any port.
    pub(crate) fn open_from(netns: &Netns, source: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        netns.enter(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
            socket.connect_timeout(&target.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(Self {
                reader: BufReader::new(socket.into()),
            })
        })
    }

    /// Connects from any address and port, and waits no longer than this.
    pub(crate) fn open_within(netns: &Netns, target: SocketAddr, patience: Duration) -> io::Result<Self> {
        netns.enter(|| {
            let stream = TcpStream::connect_timeout(&target, patience)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Self {
                reader: BufReader::new(stream),
            })
        })
    }

    /// Asks for the server's name.
    pub(crate) fn ask(&mut self) -> io::Result<Answer> {
        self.write(b"who\n")?;
        Answer::parse(&self.line()?)
    }

    /// Downloads bytes; returns how many are right.
    pub(crate) fn download(&mut self, count: usize) -> io::Result<usize> {
        self.write(format!("get {count}\n").as_bytes())?;
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes)?;
        Ok(right(&bytes))
    }

    /// Uploads bytes; returns how many are right at the server.
    pub(crate) fn upload(&mut self, count: usize) -> io::Result<usize> {
        self.write(format!("put {count}\n").as_bytes())?;
        self.write(&pattern(count))?;
        number(self.line()?.trim_end())
    }

    /// Closes it with a reset, which frees its port at once.
    pub(crate) fn abort(self) -> io::Result<()> {
        SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(line)
    }
}

/// A UDP socket on a port that has not been used for a while: to a data path, a port that is used again
/// within half a minute is the same flow, and random ports repeat now and then.
fn fresh_datagram_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
    UdpSocket::bind(any(target, port))
}

/// Asks once, over a new TCP connection.
pub(crate) fn ask(netns: &Netns, target: SocketAddr) -> io::Result<Answer> {
    /// The time after which a SYN is sent again (RFC 6298, section 2).
    const RETRANSMISSION: Duration = Duration::from_secs(1);
    let begin = Instant::now();
    let mut connection = Connection::open(netns, target)?;
    let late = begin.elapsed() >= RETRANSMISSION;
    Ok(Answer {
        late,
        ..connection.ask()?
    })
}

/// Asks once, with a datagram from a new port; the answer must come from the address that was asked.
pub(crate) fn ask_by_datagram(netns: &Netns, target: SocketAddr) -> io::Result<Answer> {
    netns.enter(|| {
        let socket = fresh_datagram_socket(target)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"who", target)?;
        let mut buffer = [0; 128];
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from != target {
            return Err(io::Error::other(format!("the answer came from {from}")));
        }
        Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
    })
}

/// The same from a connected socket, which receives ICMP errors. The question is no shorter than what an ICMP
/// error quotes of it: XDP on a veth has no room for an answer that is longer than the packet.
pub(crate) fn ask_by_connected_datagram(netns: &Netns, target: SocketAddr) -> io::Result<Answer> {
    netns.enter(|| {
        let socket = fresh_datagram_socket(target)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target)?;
        socket.send(b"who is it that answers here?")?;
        let mut buffer = [0; 128];
        let length = socket.recv(&mut buffer)?;
        Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
    })
}

/// Asks once, with a datagram from a port.
pub(crate) fn ask_from_port(netns: &Netns, port: u16, target: SocketAddr) -> io::Result<Answer> {
    netns.enter(|| {
        let socket = UdpSocket::bind(any(target, port))?;
        let question = b"who is it that answers here?";
        socket.send_to(question, target)?;
        answer_of(&socket, target, question.len(), PATIENCE)
    })
}

/// Asks with a datagram of so many bytes; the answer must have as many. Either may be lost once: kernels
/// forbid to split what fits their card, and learn from that what the way carries.
pub(crate) fn ask_with(netns: &Netns, target: SocketAddr, size: usize) -> io::Result<Answer> {
    netns.enter(|| {
        let socket = fresh_datagram_socket(target)?;
        let ask = |patience| {
            socket.send_to(&vec![b'?'; size], target)?;
            answer_of(&socket, target, size, patience)
        };
        let is_lost = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        for _ in 0..2 {
            match ask(PATIENCE / 20) {
                Err(error) if is_lost(&error) => {}
                answer => return answer,
            }
        }
        ask(PATIENCE)
    })
}

fn answer_of(socket: &UdpSocket, target: SocketAddr, size: usize, patience: Duration) -> io::Result<Answer> {
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if (length, from) != (size, target) {
        return Err(io::Error::other(format!("{length} bytes came from {from}")));
    }
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// The same in fragments of which the last is sent first, from one of the client's addresses.
pub(crate) fn ask_backwards(
    netns: &Netns,
    source: IpAddr,
    target: SocketAddr,
    size: usize,
) -> io::Result<Answer> {
    /// Bytes of a fragment: a multiple of 8. With the longest headers they fill an Ethernet frame.
    const STEP: usize = 1448;
    netns.enter(|| {
        let socket = fresh_datagram_socket(target)?;
        let port = socket.local_addr()?.port();
        let payload = datagram(SocketAddr::new(source, port), target, size)?;
        let count = payload.len().div_ceil(STEP);
        // A raw socket that is given the header.
        let domain = Domain::for_address(target);
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        for (number, part) in payload.chunks(STEP).enumerate().rev() {
            let headers = fragment_headers(
                (source, target.ip()),
                port,
                (number * STEP, number + 1 < count),
                part.len(),
            )?;
            let fragment = [&headers[..], part].concat();
            raw.send_to(&fragment, &SocketAddr::new(target.ip(), 0).into())?;
        }
        answer_of(&socket, target, size, PATIENCE)
    })
}

/// A UDP header with its checksum, and that many bytes.
fn datagram(source: SocketAddr, target: SocketAddr, size: usize) -> io::Result<Vec<u8>> {
    let (ports, bytes) = ((source.port(), target.port()), vec![b'?'; size]);
    let header = match (source.ip(), target.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => UdpHeader::with_ipv4_checksum(
            ports.0,
            ports.1,
            &Ipv4Header::new(0, 64, IpNumber::UDP, from.octets(), to.octets()).map_err(io::Error::other)?,
            &bytes,
        ),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            UdpHeader::with_ipv6_checksum(ports.0, ports.1, &header, &bytes)
        }
        _ => return Err(io::Error::other("addresses of two families")),
    };
    let header = header.map_err(io::Error::other)?;
    Ok([&header.to_bytes()[..], &bytes].concat())
}

/// The headers of a fragment of UDP, which begins at an offset, and may have others after it.
fn fragment_headers(
    addresses: (IpAddr, IpAddr),
    identification: u16,
    (offset, more_fragments): (usize, bool),
    length: usize,
) -> io::Result<Vec<u8>> {
    let fragment_offset = u16::try_from(offset / 8)
        .ok()
        .and_then(|offset| offset.try_into().ok())
        .ok_or_else(|| io::Error::other("too long a datagram"))?;
    let length = u16::try_from(length).map_err(io::Error::other)?;
    let mut headers = Vec::new();
    match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(length, 64, IpNumber::UDP, from.octets(), to.octets())
                .map_err(io::Error::other)?;
            header.dont_fragment = false;
            header.more_fragments = more_fragments;
            header.identification = identification;
            header.fragment_offset = fragment_offset;
            header.write(&mut headers)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let fragment = Ipv6FragmentHeader::new(
                IpNumber::UDP,
                fragment_offset,
                more_fragments,
                identification.into(),
            );
            let header = Ipv6Header {
                payload_length: length + 8,
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            header.write(&mut headers)?;
            fragment.write(&mut headers)?;
        }
        _ => return Err(io::Error::other("addresses of two families")),
    }
    Ok(headers)
}

/// How many requests each replica answered. Begins anew, a few times, if one was answered late.
pub(crate) fn spread(
    count: usize,
    mut ask: impl FnMut() -> io::Result<Answer>,
) -> Result<BTreeMap<String, usize>> {
    let mut rounds = 3;
    loop {
        rounds -= 1;
        let mut spread = BTreeMap::new();
        let mut late = false;
        for number in 1..=count {
            let answer = ask().with_context(|| format!("request {number} of {count}; so far {spread:?}"))?;
            late |= answer.late;
            *spread.entry(answer.replica).or_insert(0) += 1;
        }
        if !late || rounds == 0 {
            return Ok(spread);
        }
    }
}
