//! Periodic work: scheduled backups and compaction of the store; also backups on request and restoring.
//! Imports `backups` and the store's trait.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use super::{ChangeError, Cluster, stored};
use crate::{
    backups::{self, BackupError, BackupInfo, BackupKind, BackupName, Keep, RestoreInto},
    objects::Timestamp,
    store::{Key, Revision, Transaction},
};

/// How often to check whether something is due.
const CHECK: Duration = Duration::from_secs(60);

/// How often the store is compacted.
const COMPACT: Duration = Duration::from_secs(300);

/// Where scheduled backups go, and which of them are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSchedule {
    /// A folder on this machine.
    pub folder: PathBuf,
    /// Which old ones are kept.
    pub keep: Keep,
}

impl Cluster {
    /// Writes a backup of all objects to a new file in a folder.
    ///
    /// # Errors
    /// When the store cannot be read or the file cannot be written.
    pub async fn backup(&self, folder: &Path, kind: BackupKind) -> Result<BackupInfo, BackupError> {
        let at = self.clock().now();
        backups::create(self.store().as_ref(), folder, BackupName { kind, at }).await
    }

    /// Restores a backup. Other changes are refused meanwhile, and the control loops wait. When this returns,
    /// [`Self::read`] shows the backup's objects, with nodes of unknown status; the agents then report which
    /// tasks still run.
    ///
    /// # Errors
    /// When the backup is damaged, or the store refuses it.
    pub async fn restore(&self, path: &Path, into: RestoreInto) -> Result<BackupInfo, ChangeError> {
        let now = self.clock().now();
        let adjust = |key: &Key, value| stored::unheard(key, value, now);
        let info = backups::restore(self.store().as_ref(), path, into, adjust).await?;
        // A mirror that has this has the whole restore.
        let guard = Transaction::new().put(stored::guard()?, "restored");
        let revision = self.store().commit(guard).await?;
        self.catch_up_to(revision).await;
        Ok(info)
    }

    /// Makes scheduled backups, forever. Every manager makes its own, so that no machine is the only one to
    /// have them.
    pub async fn keep_backups(&self, schedule: &BackupSchedule) {
        let mut failed = false;
        loop {
            let made = self.backup_if_due(schedule).await;
            if let Err(error) = &made
                && !failed
            {
                let error = error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "could not make the hourly backup; trying again every minute"
                );
            }
            failed = made.is_err();
            sleep(CHECK).await;
        }
    }

    /// Compacts the store regularly, forever.
    pub(super) async fn forget_old(&self, remember: Duration) {
        let mut seen: VecDeque<(Timestamp, Revision)> = VecDeque::new();
        loop {
            self.forget(&mut seen, remember).await;
            sleep(CHECK.min(remember / 2)).await;
        }
    }

    async fn backup_if_due(&self, schedule: &BackupSchedule) -> Result<(), BackupError> {
        let folder = &schedule.folder;
        let failed = |source: io::Error| BackupError::Write {
            path: folder.clone(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut existing = backups::list(folder)?;
        if backups::is_due(self.clock().now(), &existing) && !self.mirror().is_restoring() {
            let made = self.backup(folder, BackupKind::Hourly).await?;
            tracing::info!(path = %made.path.display(), entries = made.entries, "made a backup");
            existing = backups::list(folder)?;
        }
        for old in backups::expired(&existing, schedule.keep) {
            fs::remove_file(folder.join(old.to_string())).map_err(failed)?;
        }
        Ok(())
    }

    /// Compacts what is older than `remember`.
    async fn forget(&self, seen: &mut VecDeque<(Timestamp, Revision)>, remember: Duration) {
        let now = self.clock().now();
        if seen
            .back()
            .is_none_or(|(at, _)| now.since(*at) >= COMPACT.min(remember / 2))
        {
            seen.push_back((now, self.revision()));
        }
        let mut before = None;
        while seen.front().is_some_and(|(at, _)| now.since(*at) >= remember) {
            before = seen.pop_front();
        }
        if let Some((_, revision)) = before
            && let Err(error) = self.store().compact(revision).await
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "could not compact the store");
        }
    }
}
