//! Facts about this host that several parts need: where cgroup2 is mounted, the network namespace's cookie,
//! and interfaces' names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    net::if_::if_indextoname,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};

/// The mount point of the host's cgroup2 hierarchy, if there is one.
///
/// # Errors
/// When the mount table cannot be read.
pub fn find_cgroup2() -> io::Result<Option<PathBuf>> {
    Ok(cgroup2_mount(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Whether a folder is in a cgroup2 hierarchy.
#[must_use]
pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The name of an interface of this thread's network namespace.
///
/// # Errors
/// When there is none with this index (any more).
pub fn interface_name(index: u32) -> nix::Result<String> {
    if_indextoname(index).map(|name| name.to_string_lossy().into_owned())
}

/// The cookie of this thread's network namespace.
///
/// # Errors
/// When the kernel does not support it (before Linux 5.14).
pub fn own_netns_cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` lives; `cookie` and `length` are live and
    // `length` is the true size of `cookie`, so the kernel writes inside it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The first mount of a cgroup2 hierarchy's root in the text of a `mountinfo` file. A mount of a subtree,
/// such as a container's, counts only if there is no other.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut partial = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        // mountinfo escapes blanks in octal; other escapes are not expected here.
        let point = PathBuf::from(point.replace("\\040", " "));
        if root == "/" {
            return Some(point);
        }
        partial.get_or_insert(point);
    }
    partial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hierarchy_is_preferred_to_a_part_of_it() {
        let table = "\
30 25 0:26 /docker/abc /sys/fs/cgroup/part rw - cgroup2 cgroup2 rw
31 25 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
32 25 0:26 / /sys/fs/cgroup/uni\\040fied rw,nosuid shared:10 master:1 - cgroup2 cgroup2 rw,nsdelegate
";
        assert_eq!(cgroup2_mount(table), Some("/sys/fs/cgroup/uni fied".into()));
        let part = table.lines().next().unwrap();
        assert_eq!(cgroup2_mount(part), Some("/sys/fs/cgroup/part".into()));
    }

    #[test]
    fn a_table_without_cgroup2_has_none() {
        assert_eq!(
            cgroup2_mount("22 1 0:21 / /proc rw - proc proc rw\nnonsense\n - cgroup2"),
            None
        );
    }
}
