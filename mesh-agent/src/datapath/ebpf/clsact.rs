//! The clsact queueing discipline that filters are attached to: remembering that the agent made it, and
//! removing it when no filter is left. Imports the data path's netlink only.
//!
//! An empty directory among the pins remembers that the agent made it, and outlives the agent as pins do.

use std::{
    io,
    path::{Path, PathBuf},
};

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::{super::DatapathError, failed, hooks::TcHook};
use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// `TC_H_MAJ` of clsact's handle and of the parents below it (`linux/pkt_sched.h`).
const CLSACT: u16 = 0xffff;
/// `TC_H_CLSACT`, the parent of the discipline.
const PARENT: u16 = 0xfff1;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`, the parents of filters.
const HOOKS: [u16; 2] = [0xfff2, 0xfff3];

/// Remembers that the agent made the discipline of an interface.
pub(super) fn remember(links: &Path, index: u32) -> Result<(), DatapathError> {
    let mark = marks(links).join(index.to_string());
    std::fs::create_dir_all(&mark)
        .map_err(|error| failed(format!("create the directory {}", mark.display()), error))
}

/// Remembers as well what agents with other folders remember.
pub(super) fn inherit(from: &Path, links: &Path) -> Result<(), DatapathError> {
    let entries = std::fs::read_dir(marks(from)).into_iter().flatten().flatten();
    let indexes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    indexes.into_iter().try_for_each(|index| remember(links, index))
}

/// Removes the disciplines that agents made and that no filter is left on, ours or others'.
pub(super) fn release(links: &Path) -> Result<(), DatapathError> {
    let Ok(entries) = std::fs::read_dir(marks(links)) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let Some(index) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let operation = || format!("remove the clsact queueing discipline of interface {index}");
        if remove_if_empty(index).map_err(|error| failed(operation(), error))? {
            match std::fs::remove_dir(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(
                        format!("remove the directory {}", entry.path().display()),
                        error,
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether the discipline of an interface has filters on a hook. Unknown counts as yes.
pub(super) fn has_filters(index: u32, hook: TcHook) -> bool {
    let parent = match hook {
        TcHook::Ingress => HOOKS[0],
        TcHook::Egress => HOOKS[1],
    };
    let request = RouteNetlinkMessage::GetTrafficFilter(message(index, parent));
    let listed = Connection::open(NETLINK_ROUTE)
        .and_then(|mut connection| connection.dump(&Message::encode(&request, 0)));
    match listed {
        Ok(filters) => !filters.is_empty(),
        Err(error) => !is_gone(&error),
    }
}

/// Beside the links' directory, in which every entry is a link.
fn marks(links: &Path) -> PathBuf {
    links.with_file_name("clsact")
}

/// Removes the discipline unless a filter is left on it; whether it is gone now.
fn remove_if_empty(index: u32) -> Result<bool, NetlinkError> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    for hook in HOOKS {
        let request = message(index, hook);
        match connection.dump(&Message::encode(
            &RouteNetlinkMessage::GetTrafficFilter(request),
            0,
        )) {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(false),
            Err(error) if is_gone(&error) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    let mut request = message(index, PARENT);
    request.header.handle = TcHandle {
        major: CLSACT,
        minor: 0,
    };
    let removal = Message::encode(&RouteNetlinkMessage::DelQueueDiscipline(request), NLM_F_ACK);
    match connection.request(&removal) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(true),
    }
}

fn message(index: u32, parent: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle {
        major: CLSACT,
        minor: parent,
    };
    message
}

/// Whether the interface or its discipline no longer exists.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL))
}
