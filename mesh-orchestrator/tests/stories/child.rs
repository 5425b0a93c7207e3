//! Processes that a story starts and kills: this program again, with its work in the environment.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};

use crate::{cluster, store};

const WORK: &str = "MESH_STORY_CHILD";
const ARGUMENT: &str = "MESH_STORY_CHILD_ARGUMENT";

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    WriteUntilKilled,
    WriteToAFullDisk,
    CampaignUntilKilled,
    CreateServicesUntilKilled,
}

impl Work {
    const ALL: [Self; 4] = [
        Self::WriteUntilKilled,
        Self::WriteToAFullDisk,
        Self::CampaignUntilKilled,
        Self::CreateServicesUntilKilled,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::WriteUntilKilled => "write-until-killed",
            Self::WriteToAFullDisk => "write-to-a-full-disk",
            Self::CampaignUntilKilled => "campaign-until-killed",
            Self::CreateServicesUntilKilled => "create-services-until-killed",
        }
    }

    fn run(self, argument: &Path) -> Result<()> {
        match self {
            Self::WriteUntilKilled => store::redb::write_until_killed(argument),
            Self::WriteToAFullDisk => store::disk::write_to_a_full_disk(argument),
            Self::CampaignUntilKilled => store::etcd::campaign_until_killed(argument),
            Self::CreateServicesUntilKilled => cluster::crash::create_services_until_killed(argument),
        }
    }

    /// A process that does it.
    pub(crate) fn command(self, argument: &Path) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(WORK, self.name()).env(ARGUMENT, argument);
        Ok(command)
    }
}

/// Does a child's work, if this process is one.
pub(crate) fn work() -> Option<ExitCode> {
    let name = std::env::var(WORK).ok()?;
    let argument = std::env::var_os(ARGUMENT).unwrap_or_default();
    let done = match Work::ALL.into_iter().find(|work| work.name() == name) {
        Some(work) => work.run(Path::new(&argument)),
        None => (|| bail!("unknown work: {name}"))(),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}
