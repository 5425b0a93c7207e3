//! Reads the filter table of iptables-legacy, which the kernel hands out by a socket option, as one block of
//! entries. Layouts are those of `linux/netfilter_ipv4/ip_tables.h`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{
    extensions::{self, array, subnet},
    ruleset::{Action, Chains, Condition, Rule, Subject},
};

/// What differs between IPv4's tables and IPv6's.
pub(super) struct Layout {
    /// The file of the tables that exist: asking the kernel for another would make it.
    pub(super) tables: &'static str,
    pub(super) family: AddressFamily,
    /// Of the socket option.
    pub(super) level: i32,
    /// Bytes of an entry (`ipt_entry`) before its matches.
    pub(super) entry_bytes: usize,
    /// Where it has its target's offset, and then the next entry's.
    pub(super) target: usize,
}

/// A table as the kernel hands it out.
pub(super) struct Block {
    /// `ipt_getinfo`
    pub(super) info: Vec<u8>,
    pub(super) entries: Vec<u8>,
}

/// The target of the entries before user-defined chains.
pub(super) const MARKER: &str = "ERROR";

const LAYOUT: Layout = Layout {
    tables: "/proc/thread-self/net/ip_tables_names",
    family: AddressFamily::Inet,
    level: libc::IPPROTO_IP,
    entry_bytes: 112,
    target: 88,
};
const TABLE: &str = "filter";
/// How often reading is tried again when the table changes meanwhile.
const ATTEMPTS: usize = 5;

const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Bytes of `ipt_getinfo`, and of the header of `ipt_get_entries`.
const INFO_BYTES: usize = 84;
const HEADER_BYTES: usize = 40;
/// Where the entries' size is in both.
const INFO_SIZE: usize = 80;
const HEADER_SIZE: usize = 32;
/// Bytes of a match or target before its data.
const EXTENSION_BYTES: usize = 32;

const GOTO: u8 = 2;
const FRAGMENT: u8 = 1;

/// The chains of the table; none where there is no such table.
pub(super) fn read() -> io::Result<Chains> {
    let block = block(&LAYOUT)?;
    Ok(block.map(|block| chains(&block.entries)).unwrap_or_default())
}

/// The filter table; `None` where there is none.
pub(super) fn block(layout: &Layout) -> io::Result<Option<Block>> {
    let Ok(tables) = fs::read_to_string(layout.tables) else {
        return Ok(None);
    };
    if !tables.lines().any(|name| name == TABLE) {
        return Ok(None);
    }
    let socket = socket(layout.family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for _ in 0..ATTEMPTS {
        let mut info = named(INFO_BYTES);
        option(&socket, layout, GET_INFO, &mut info)?;
        let size = number(&info, INFO_SIZE).unwrap_or_default();
        let mut entries = named(HEADER_BYTES + size as usize);
        entries[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
        match option(&socket, layout, GET_ENTRIES, &mut entries) {
            // It has another size by now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => {
                outcome?;
                let entries = entries.split_off(HEADER_BYTES);
                return Ok(Some(Block { info, entries }));
            }
        }
    }
    Err(io::Error::other(
        "the filter table of iptables-legacy or ip6tables-legacy changed each time it was read",
    ))
}

/// A request of so many bytes, which begins with the table's name.
fn named(bytes: usize) -> Vec<u8> {
    let mut request = vec![0; bytes];
    request[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
    request
}

fn option(socket: &OwnedFd, layout: &Layout, option: i32, request: &mut [u8]) -> io::Result<()> {
    let mut length = request.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes `length` bytes of the request at most, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            layout.level,
            option,
            request.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(array(bytes, offset)?))
}

fn short(bytes: &[u8], offset: usize) -> Option<usize> {
    Some(usize::from(u16::from_ne_bytes(array(bytes, offset)?)))
}

/// A match or a target.
struct Extension<'a> {
    name: String,
    revision: u8,
    data: &'a [u8],
}

impl<'a> Extension<'a> {
    fn at(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let size = short(bytes, 0)?;
        let name = bytes.get(2..31)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let extension = Self {
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            revision: *bytes.get(31)?,
            data: bytes.get(EXTENSION_BYTES..size)?,
        };
        Some((extension, size))
    }
}

/// The entries of the table, by offset.
pub(super) fn entries<'a>(bytes: &'a [u8], layout: &Layout) -> Vec<(usize, &'a [u8])> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some(length) = short(bytes, offset + layout.target + 2) {
        let Some(entry) = bytes
            .get(offset..offset + length)
            .filter(|_| length >= layout.entry_bytes)
        else {
            break;
        };
        found.push((offset, entry));
        offset += length;
    }
    found
}

/// Where user-defined chains begin: after an entry whose target is `ERROR`, with the chain's name. (The
/// chains before the first of them are the kernel's own.)
pub(super) fn starts(bytes: &[u8], layout: &Layout) -> BTreeMap<usize, String> {
    let mut starts = BTreeMap::new();
    for pair in entries(bytes, layout).windows(2) {
        if let Some(target) = target(pair[0].1, layout)
            && target.name == MARKER
            && let Some(end) = target.data.iter().position(|byte| *byte == 0)
        {
            let name = String::from_utf8_lossy(&target.data[..end]).into_owned();
            starts.insert(pair[1].0, name);
        }
    }
    starts
}

fn target<'a>(entry: &'a [u8], layout: &Layout) -> Option<Extension<'a>> {
    let (target, _) = Extension::at(entry.get(short(entry, layout.target)?..)?)?;
    Some(target)
}

/// The user-defined chains.
pub(super) fn chains(bytes: &[u8]) -> Chains {
    let starts = starts(bytes, &LAYOUT);
    let mut chains = Chains::new();
    let mut current: Option<&String> = None;
    for (offset, entry) in entries(bytes, &LAYOUT) {
        current = starts.get(&offset).or(current);
        if target(entry, &LAYOUT).is_some_and(|target| target.name == MARKER) {
            current = None;
        }
        if let Some(chain) = current {
            let rules = chains.entry(chain.clone()).or_default();
            rules.extend(rule(entry, offset, &starts));
        }
    }
    // The last one is the return to where the chain was called from, which no one has written.
    for rules in chains.values_mut() {
        rules.pop();
    }
    chains
}

fn rule(entry: &[u8], offset: usize, starts: &BTreeMap<usize, String>) -> Option<Rule> {
    let [flags, inverted] = array(entry, 82)?;
    let mut conditions = addresses(entry, inverted)?;
    if flags & FRAGMENT != 0 {
        conditions.push(Condition::new(Subject::Other("fragment".to_owned()), false));
    }
    let target_offset = short(entry, LAYOUT.target)?;
    let mut next = LAYOUT.entry_bytes;
    while next < target_offset {
        let (extension, size) = Extension::at(entry.get(next..)?)?;
        conditions.extend(extensions::conditions(
            &extension.name,
            extension.revision,
            extension.data,
        ));
        next += size.max(EXTENSION_BYTES);
    }
    let action = match action(entry, offset, starts, &LAYOUT)? {
        Action::Jump(chain) if flags & GOTO != 0 => Action::Goto(chain),
        action => action,
    };
    Some(Rule { conditions, action })
}

/// What an entry's target does. Whether a jump comes back is in the entry's flags.
pub(super) fn action(
    entry: &[u8],
    offset: usize,
    starts: &BTreeMap<usize, String>,
    layout: &Layout,
) -> Option<Action> {
    let target = target(entry, layout)?;
    if !target.name.is_empty() {
        return Some(extensions::target(&target.name));
    }
    Some(match number(target.data, 0)?.cast_signed() {
        -1 => Action::Drop,
        -2 => Action::Accept,
        -5 => Action::Return,
        // A jump to the next entry is no target at all.
        jump if jump == (offset + entry.len()) as i32 => Action::Continue(String::new()),
        jump if jump >= 0 => match starts.get(&(jump as usize)) {
            Some(chain) => Action::Jump(chain.clone()),
            None => Action::Other("a jump".to_owned()),
        },
        _ => Action::Other("a verdict".to_owned()),
    })
}

/// The conditions of `ipt_ip`.
fn addresses(entry: &[u8], inverted: u8) -> Option<Vec<Condition>> {
    let mut conditions = Vec::new();
    for (address, mask, bit, is_source) in [(0, 8, 8, true), (4, 12, 16, false)] {
        let mask: [u8; 4] = array(entry, mask)?;
        if mask == [0; 4] && inverted & bit == 0 {
            continue;
        }
        let subject = match subnet(array(entry, address)?, mask) {
            Some(subnet) if is_source => Subject::Source(subnet),
            Some(subnet) => Subject::Destination(subnet),
            None => Subject::Other("a mask that is no prefix".to_owned()),
        };
        conditions.push(Condition::new(subject, inverted & bit != 0));
    }
    for (name, mask, bit, is_in) in [(16, 48, 1, true), (32, 64, 2, false)] {
        let (name, mask): ([u8; 16], [u8; 16]) = (array(entry, name)?, array(entry, mask)?);
        let compared = mask.iter().take_while(|byte| **byte != 0).count();
        if compared == 0 {
            continue;
        }
        // The terminating zero is compared, unless the name ends in a `+`.
        let name = match name[..compared].split_last() {
            Some((0, name)) => String::from_utf8_lossy(name).into_owned(),
            Some(_) | None => format!("{}+", String::from_utf8_lossy(&name[..compared])),
        };
        let subject = if is_in {
            Subject::In(name)
        } else {
            Subject::Out(name)
        };
        conditions.push(Condition::new(subject, inverted & bit != 0));
    }
    let protocol = u16::from_ne_bytes(array(entry, 80)?);
    if protocol != 0 {
        conditions.push(Condition::new(
            Subject::Protocol(protocol as u8),
            inverted & 0x40 != 0,
        ));
    }
    Some(conditions)
}
