//! Whether a container has open connections, by the kernel's list of sockets in its network namespace. This
//! decides when a drained replica may stop, whichever nodes the connections entered at.

use std::{collections::BTreeSet, io};

/// The kernel's code of an established connection.
const ESTABLISHED: &str = "01";

/// Whether a process's network namespace has established TCP connections to any of these ports.
///
/// # Errors
/// When the list cannot be read: the process is gone, or in another PID namespace.
pub(super) fn are_open(pid: u32, ports: &BTreeSet<u16>) -> io::Result<bool> {
    if ports.is_empty() {
        return Ok(false);
    }
    let list = |name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    // A kernel without IPv6 has no tcp6 list.
    Ok(any(&list("tcp")?, ports) || any(&list("tcp6").unwrap_or_default(), ports))
}

fn any(table: &str, ports: &BTreeSet<u16>) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        let port = local
            .and_then(|local| local.rsplit_once(':'))
            .and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        state == Some(ESTABLISHED) && port.is_some_and(|port| ports.contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_established_connections_to_the_ports_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 00000000:0050 00000000:0000 0A 00000000:00000000\n   \
                     1: 020011AC:0050 010011AC:C350 01 00000000:00000000\n   \
                     2: 020011AC:1F90 010011AC:C351 06 00000000:00000000\n";
        for (port, expected) in [(80, true), (8080, false), (443, false)] {
            assert_eq!(any(table, &BTreeSet::from([port])), expected, "{port}");
        }
    }

    #[test]
    fn an_open_connection_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = BTreeSet::from([listener.local_addr().unwrap().port()]);
        let pid = std::process::id();
        assert!(!are_open(pid, &ports).unwrap());
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap();
        assert!(are_open(pid, &ports).unwrap());
        drop((client, accepted));
    }
}
