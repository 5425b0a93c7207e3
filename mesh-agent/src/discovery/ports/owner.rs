//! Who a socket belongs to: the process that holds it or, where processes cannot be seen (an agent in a
//! container has no view of the host's), the cgroup in which it was made.

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::sockets::Socket;
use crate::model::{Protocol, ServiceKey};

/// The port of the gossip between a Swarm's engines, on which each engine listens.
const GOSSIP: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 7946,
};
/// The programs with which Docker keeps a published port.
const ENGINE: [&str; 2] = ["dockerd", "docker-proxy"];
/// No machine has more cgroups; the search ends there.
const CGROUPS: usize = 20_000;
/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// Who a socket belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Docker, which listens on ports that services and containers publish.
    Engine,
    /// A container on the host's network, by its id.
    Container(String),
    /// Anything else, as a person would name it.
    Other(String),
}

/// What is known of sockets' owners at a moment.
pub(super) struct Owners {
    cgroup: Option<PathBuf>,
    /// The cgroup of Docker.
    engine: Option<u64>,
}

impl Owners {
    /// `sockets` are all of the node.
    pub(super) fn new(sockets: &[Socket], cgroup: Option<PathBuf>) -> Self {
        let gossip = sockets.iter().find(|socket| socket.key == GOSSIP);
        Self {
            cgroup,
            engine: gossip.and_then(|socket| socket.cgroup),
        }
    }

    pub(super) fn of(&self, socket: &Socket) -> Owner {
        let process = holder(socket.inode);
        if process
            .as_ref()
            .is_some_and(|(_, name)| ENGINE.contains(&name.as_str()))
        {
            return Owner::Engine;
        }
        let folder = self
            .cgroup
            .as_ref()
            .zip(socket.cgroup)
            .and_then(|(root, id)| folder(root, id));
        if let Some(container) = folder.as_deref().and_then(container_id) {
            return Owner::Container(container);
        }
        if let Some((number, name)) = process {
            return Owner::Other(format!("process {number} ({name})"));
        }
        // Nothing of the host but Docker is where Docker is.
        if socket.cgroup.is_some() && socket.cgroup == self.engine {
            return Owner::Engine;
        }
        match folder.filter(|folder| folder != Path::new("/")) {
            Some(folder) => Owner::Other(format!("a process of {}", folder.display())),
            None => Owner::Other(format!("a process of user {}", socket.user)),
        }
    }
}

/// The process that holds a socket, and its name.
fn holder(inode: u32) -> Option<(u32, String)> {
    let link = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new(&link))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((number, name.trim().to_owned()));
        }
    }
    None
}

/// The folder of a cgroup below the hierarchy's root, by its id, which is the folder's inode.
fn folder(root: &Path, id: u64) -> Option<PathBuf> {
    let mut queue = VecDeque::from([root.to_owned()]);
    let mut visited = 0;
    while let Some(path) = queue.pop_front() {
        visited += 1;
        if fs::metadata(&path).is_ok_and(|found| found.ino() == id) {
            return Some(Path::new("/").join(path.strip_prefix(root).unwrap_or(&path)));
        }
        if visited >= CGROUPS {
            return None;
        }
        let children = fs::read_dir(&path).into_iter().flatten().flatten();
        queue.extend(
            children
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|child| child.path()),
        );
    }
    None
}

/// The id of the container whose cgroup this is: `/docker/ID`, `/system.slice/docker-ID.scope`.
fn container_id(folder: &Path) -> Option<String> {
    let names = folder.iter().filter_map(|name| name.to_str());
    names
        .flat_map(|name| name.split(['-', '.']))
        .find(|part| part.len() == ID_DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::fd::AsRawFd,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn the_process_that_holds_a_socket_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let link = link.to_str().unwrap();
        let inode: u32 = link["socket:[".len()..link.len() - 1].parse().unwrap();
        until_held_by(inode, Some(std::process::id()));
        drop(listener);
        until_held_by(inode, None);
    }

    /// A program that another test starts holds every socket of this process for a moment.
    fn until_held_by(inode: u32, expected: Option<u32>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let found = holder(inode);
            if found.as_ref().map(|(number, _)| *number) == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?} holds it, not {expected:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_inode_and_names_a_container() {
        let root = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef".repeat(4);
        for (name, container) in [
            ("system.slice/ssh.service".to_owned(), None),
            (format!("docker/{id}"), Some(id.clone())),
            (format!("system.slice/docker-{id}.scope"), Some(id.clone())),
        ] {
            let path = root.path().join(&name);
            fs::create_dir_all(&path).unwrap();
            let found = folder(root.path(), fs::metadata(&path).unwrap().ino()).unwrap();
            assert_eq!(found, Path::new("/").join(&name));
            assert_eq!(container_id(&found), container);
        }
        assert_eq!(folder(root.path(), 1), None);
    }

    #[test]
    fn where_no_process_is_seen_docker_is_known_by_its_cgroup() {
        let socket = |port, cgroup| Socket {
            key: ServiceKey {
                protocol: Protocol::Tcp,
                port,
            },
            // No process holds it.
            inode: u32::MAX,
            user: 7,
            cgroup: Some(cgroup),
        };
        let sockets = [socket(7946, 40), socket(8080, 40), socket(8081, 41)];
        let owners = Owners::new(&sockets, None);
        assert_eq!(owners.of(&sockets[1]), Owner::Engine);
        assert_eq!(
            owners.of(&sockets[2]),
            Owner::Other("a process of user 7".to_owned())
        );
    }
}
