//! The clsact queueing discipline that filters hang on: remembering that it is ours, and taking it away
//! when nobody needs it any more. Imports the data path's netlink only.
//!
//! Who made it is remembered by an empty folder among the pins, which outlives the agent as they do.

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

use super::{super::DatapathError, failed};
use crate::datapath::netlink::{Connection, Message, NetlinkError};

/// `TC_H_MAJ` of clsact's handle and of the parents below it (`linux/pkt_sched.h`).
const CLSACT: u16 = 0xffff;
/// `TC_H_CLSACT`, where the discipline hangs.
const PARENT: u16 = 0xfff1;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`, where filters hang.
const HOOKS: [u16; 2] = [0xfff2, 0xfff3];

/// Remembers that the agent has made the discipline of an interface.
pub(super) fn remember(links: &Path, index: u32) -> Result<(), DatapathError> {
    let mark = folder(links).join(index.to_string());
    std::fs::create_dir_all(&mark)
        .map_err(|error| failed(format!("make the folder {}", mark.display()), error))
}

/// Takes the disciplines away that agents have made and that no filter is left on, ours or anybody's.
pub(super) fn release(links: &Path) -> Result<(), DatapathError> {
    let Ok(entries) = std::fs::read_dir(folder(links)) else {
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
                        format!("remove the folder {}", entry.path().display()),
                        error,
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Beside the links' folder, where every entry is a link.
fn folder(links: &Path) -> PathBuf {
    links.with_file_name("clsact")
}

/// Whether it is gone now.
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

/// The interface or its discipline is not there any more.
fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL))
}
