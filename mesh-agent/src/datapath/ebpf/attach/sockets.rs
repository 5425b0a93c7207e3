//! The socket programs on the cgroup, which redirect local processes' connections. Part of [`Attachments`].

use std::{fs::File, path::Path};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};

use super::{Attachments, program};
use crate::datapath::{
    DatapathError,
    ebpf::{failed, hooks::remove_pin},
};

/// `recvmsg` and `getpeername` come first: they restore addresses, so they must be there before any address
/// is replaced.
const SOCKET_PROGRAMS: [&str; 8] = [
    "mesh_recvmsg4",
    "mesh_recvmsg6",
    "mesh_getpeername4",
    "mesh_getpeername6",
    "mesh_connect4",
    "mesh_connect6",
    "mesh_sendmsg4",
    "mesh_sendmsg6",
];

impl Attachments {
    /// Redirects local processes' connections from now on.
    pub(in super::super) fn sockets(
        &mut self,
        programs: &mut Ebpf,
        cgroup: &Path,
    ) -> Result<(), DatapathError> {
        if self.sockets {
            return Ok(());
        }
        let root = File::open(cgroup)
            .map_err(|error| failed(format!("open the cgroup2 hierarchy {}", cgroup.display()), error))?;
        for name in SOCKET_PROGRAMS {
            let doing = || format!("attach {name} to the cgroup {}", cgroup.display());
            let program: &mut CgroupSockAddr = program(programs, name)?;
            // Links coexist in any mode, and the kernel accepts no flags with them.
            let link = program
                .attach(&root, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|error| failed(doing(), error))?;
            let link = FdLink::try_from(link).map_err(|error| failed(doing(), error))?;
            // Replaces the old link's pin in one step: for a moment both are attached, never none.
            let pin = self.links.join(name);
            let fresh = self.links.join(format!("{name}_new"));
            remove_pin(&fresh)?;
            link.pin(&fresh)
                .map_err(|error| failed(format!("pin {}", fresh.display()), error))?;
            std::fs::rename(&fresh, &pin).map_err(|error| failed(format!("pin {}", pin.display()), error))?;
            self.unclaimed.remove(&pin);
            self.unclaimed.remove(&fresh);
        }
        self.sockets = true;
        Ok(())
    }
}
