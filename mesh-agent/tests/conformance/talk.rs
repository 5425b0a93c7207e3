//! The conversations of the stories: small TCP and UDP servers, and their clients. Knows nothing of the
//! mesh.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};

use crate::space::Space;

/// The port every server answers TCP on.
pub(crate) const TCP_PORT: u16 = 80;
/// The port every server answers UDP on.
pub(crate) const UDP_PORT: u16 = 53;
/// How long a client waits for an answer. Generous, for emulated machines; nothing that works takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How often a UDP server looks whether it should end.
const LOOK: Duration = Duration::from_millis(200);

/// Answers in one namespace, with its name and what it sees of the client.
pub(crate) struct Server {
    listener: TcpListener,
    ended: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts answering.
    pub(crate) fn start(space: &Space, name: &str) -> Result<Self> {
        let (listener, datagrams) = space.enter(|| -> io::Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TCP_PORT))?;
            Ok((listener, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, UDP_PORT))?))
        })?;
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = listener.try_clone()?;
        datagrams.set_read_timeout(Some(LOOK))?;
        let (named, end) = (name.to_owned(), Arc::clone(&ended));
        let tcp = thread::spawn(move || accept(&accepting, &named));
        let named = name.to_owned();
        let udp = thread::spawn(move || echo(&datagrams, &named, &end));
        Ok(Self {
            listener,
            ended,
            threads: vec![tcp, udp],
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Ends the waiting accept; connections end with their clients.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
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

/// One connection: `who` is answered with name and peer, `get N` with N bytes, `put N` and N bytes with
/// how many of them were as they should be.
fn serve(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    // Should the client vanish, this thread does so too.
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
            None => writer.write_all(format!("{name} {peer}\n").as_bytes())?,
            Some(("get", count)) => writer.write_all(&pattern(number(count)?))?,
            Some((_, count)) => {
                let mut bytes = vec![0; number(count)?];
                reader.read_exact(&mut bytes)?;
                let right = bytes
                    .iter()
                    .zip(pattern(bytes.len()))
                    .filter(|(got, sent)| *got == sent)
                    .count();
                writer.write_all(format!("{right}\n").as_bytes())?;
            }
        }
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}

/// Bytes whose order shows; the period is prime, so that no lost segment goes unseen.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|place| (place % 251) as u8).collect()
}

fn echo(socket: &UdpSocket, name: &str, ended: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !ended.load(Ordering::Relaxed) {
        // Errors are those of clients that have gone.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {peer}").as_bytes(), peer);
        }
    }
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The server's name.
    pub(crate) replica: String,
    /// Who the server thinks it talks to.
    pub(crate) seen: SocketAddrV4,
}

impl Answer {
    fn parse(text: &str) -> io::Result<Self> {
        text.trim_end()
            .split_once(' ')
            .and_then(|(name, seen)| {
                Some(Self {
                    replica: name.to_owned(),
                    seen: seen.parse().ok()?,
                })
            })
            .ok_or_else(|| io::Error::other(format!("the server said `{text}`")))
    }
}

/// A TCP connection that is kept.
pub(crate) struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects from anywhere.
    pub(crate) fn open(space: &Space, target: SocketAddrV4) -> io::Result<Self> {
        Self::open_from(space, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), target)
    }

    /// Connects from a chosen address and port; 0 where it does not matter.
    pub(crate) fn open_from(space: &Space, source: SocketAddrV4, target: SocketAddrV4) -> io::Result<Self> {
        space.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
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

    /// Asks who answers.
    pub(crate) fn ask(&mut self) -> io::Result<Answer> {
        self.write(b"who\n")?;
        Answer::parse(&self.line()?)
    }

    /// Fetches bytes; returns how many were as they should be.
    pub(crate) fn download(&mut self, count: usize) -> io::Result<usize> {
        self.write(format!("get {count}\n").as_bytes())?;
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes
            .iter()
            .zip(pattern(count))
            .filter(|(got, sent)| *got == sent)
            .count())
    }

    /// Sends bytes; returns how many the server found to be as they should be.
    pub(crate) fn upload(&mut self, count: usize) -> io::Result<usize> {
        self.write(format!("put {count}\n").as_bytes())?;
        self.write(&pattern(count))?;
        number(self.line()?.trim_end())
    }

    /// Ends it by a reset, so that its port is free at once.
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

/// A UDP socket on a port that none has had for long: a port used again within half a minute is the same flow to
/// a data path, and a chance one would be used again now and then.
fn fresh_datagram_socket() -> io::Result<UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
}

/// Asks once, by a TCP connection of its own.
pub(crate) fn ask(space: &Space, target: SocketAddrV4) -> io::Result<Answer> {
    Conversation::open(space, target)?.ask()
}

/// Asks once, by a datagram from a port of its own; the answer must come from where it was asked.
pub(crate) fn ask_by_datagram(space: &Space, target: SocketAddrV4) -> io::Result<Answer> {
    space.enter(|| {
        let socket = fresh_datagram_socket()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"who", target)?;
        let mut buffer = [0; 128];
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from != SocketAddr::V4(target) {
            return Err(io::Error::other(format!("the answer came from {from}")));
        }
        Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
    })
}

/// The same by a connected socket, which is told of refusals. The question is no shorter than what an ICMP
/// error quotes of it: XDP on a veth has no room for an answer that is longer than the packet.
pub(crate) fn ask_by_connected_datagram(space: &Space, target: SocketAddrV4) -> io::Result<Answer> {
    space.enter(|| {
        let socket = fresh_datagram_socket()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target)?;
        socket.send(b"who is it that answers here?")?;
        let mut buffer = [0; 128];
        let length = socket.recv(&mut buffer)?;
        Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
    })
}

/// How many answers each replica gives.
pub(crate) fn spread(
    count: usize,
    mut ask: impl FnMut() -> io::Result<Answer>,
) -> Result<BTreeMap<String, usize>> {
    let mut spread = BTreeMap::new();
    for number in 1..=count {
        let answer = ask().with_context(|| format!("request {number} of {count}; so far {spread:?}"))?;
        *spread.entry(answer.replica).or_insert(0) += 1;
    }
    Ok(spread)
}
