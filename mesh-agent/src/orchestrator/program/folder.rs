//! The folder of programs: one subfolder per program, named by its digest, and the record. Every file is
//! written atomically.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use nix::unistd::alarm;
use tracing::{info, warn};

use super::{Digest, ProgramError, Record};

/// The record's file name.
const RECORD: &str = "current";
/// A program's file name in its folder, and in images.
const PROGRAM: &str = "mesh-agent";
/// Prefix of programs that are being extracted.
const INCOMING: &str = ".incoming-";
/// This process's own program, even if its file was replaced or removed.
const OWN: &str = "/proc/self/exe";

/// The programs of this node's agent.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
    record: Mutex<Record>,
    own: OnceLock<Digest>,
}

impl Programs {
    /// Opens a folder, which need not exist yet.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, ProgramError> {
        let folder = folder.into();
        let path = folder.join(RECORD);
        let record = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| ProgramError::Record { path, source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(ProgramError::file("read", path)(error)),
        };
        Ok(Self {
            folder,
            record: Mutex::new(record),
            own: OnceLock::new(),
        })
    }

    /// A copy of the record.
    #[must_use]
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record, on the disk first.
    ///
    /// # Errors
    /// When it cannot be written; the record is then unchanged.
    pub fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, ProgramError> {
        let mut known = self.lock();
        let mut record = known.clone();
        let answer = change(&mut record);
        if record != *known {
            self.create_folder()?;
            let path = self.folder.join(RECORD);
            let text = serde_json::to_vec_pretty(&record).map_err(|source| ProgramError::Record {
                path: path.clone(),
                source,
            })?;
            let draft = self.folder.join(format!("{RECORD}.new"));
            write(&draft, &text).map_err(ProgramError::file("write", &draft))?;
            fs::rename(&draft, &path).map_err(ProgramError::file("replace", &path))?;
            sync(&self.folder)?;
            *known = record;
        }
        Ok(answer)
    }

    /// Ends the current program's trial, and removes the programs that are no longer needed.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn prove(&self) -> Result<(), ProgramError> {
        if self.change(Record::prove)? {
            alarm::cancel();
            let record = self.record();
            info!(
                program = record.current.as_ref().map(Digest::short),
                "the trial of this agent program succeeded"
            );
            self.prune();
        }
        Ok(())
    }

    /// The digest of the program that this process runs. The first call reads the whole file.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn own(&self) -> Result<Digest, ProgramError> {
        if let Some(own) = self.own.get() {
            return Ok(own.clone());
        }
        let own = Digest::of_file(Path::new(OWN)).map_err(ProgramError::file("read", OWN))?;
        Ok(self.own.get_or_init(|| own).clone())
    }

    /// The path of a program, present or not.
    #[must_use]
    pub fn path(&self, program: &Digest) -> PathBuf {
        self.folder.join(program.as_str()).join(PROGRAM)
    }

    /// Whether a program is stored here.
    #[must_use]
    pub fn has(&self, program: &Digest) -> bool {
        self.path(program).is_file()
    }

    /// The path to extract a task's program to. Removes leftovers of earlier attempts.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn incoming(&self, task: &str) -> Result<PathBuf, ProgramError> {
        self.create_folder()?;
        self.remove(|name| name.starts_with(INCOMING));
        Ok(self.folder.join(format!("{INCOMING}{task}")))
    }

    /// Stores a completely extracted program. An identical one that is already stored stays: it may be
    /// running.
    ///
    /// # Errors
    /// When a file operation fails.
    pub fn install(&self, incoming: &Path) -> Result<Digest, ProgramError> {
        let program = Digest::of_file(incoming).map_err(ProgramError::file("read", incoming))?;
        let path = self.path(&program);
        if Digest::of_file(&path).is_ok_and(|found| found == program) {
            fs::remove_file(incoming).map_err(ProgramError::file("remove", incoming))?;
            return Ok(program);
        }
        let folder = self.folder.join(program.as_str());
        create_folder(&folder)?;
        fs::rename(incoming, &path).map_err(ProgramError::file("replace", &path))?;
        sync(&folder)?;
        sync(&self.folder)?;
        Ok(program)
    }

    /// Removes the programs that the record no longer needs.
    fn prune(&self) {
        let record = self.record();
        let kept = record.kept();
        self.remove(|name| Digest::try_from(name.to_owned()).is_ok_and(|program| !kept.contains(&program)));
    }

    fn remove(&self, is_old: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !is_old(&entry.file_name().to_string_lossy()) {
                continue;
            }
            let path = entry.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                warn!(%error, path = %path.display(), "cannot remove an old agent program");
            }
        }
    }

    fn create_folder(&self) -> Result<(), ProgramError> {
        create_folder(&self.folder)
    }
}

fn create_folder(path: &Path) -> Result<(), ProgramError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(path).map_err(ProgramError::file("create", path))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes sure that a folder's entries survive a power failure.
fn sync(folder: &Path) -> Result<(), ProgramError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(ProgramError::file("write", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(programs: &Programs, text: &str) -> Digest {
        let incoming = programs.incoming("t1").unwrap();
        fs::write(&incoming, text).unwrap();
        programs.install(&incoming).unwrap()
    }

    #[test]
    fn the_last_two_programs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let programs = Programs::open(&path).unwrap();
        let mut all = Vec::new();
        for (index, text) in ["one", "two", "three"].into_iter().enumerate() {
            let program = installed(&programs, text);
            all.push(program.clone());
            programs
                .change(|record| record.deploy(&index.to_string(), program.clone()))
                .unwrap();
            programs.change(|record| drop(record.begin().cloned())).unwrap();
            // As another process reads it.
            assert_eq!(Programs::open(&path).unwrap().record(), programs.record());
            programs.prove().unwrap();
        }
        let stored: Vec<bool> = all
            .iter()
            .map(|program| programs.path(program).is_file())
            .collect();
        assert_eq!(stored, [false, true, true]);
    }

    #[test]
    fn an_identical_program_stays_and_a_damaged_one_is_replaced() {
        use std::os::unix::fs::MetadataExt as _;

        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::open(folder.path()).unwrap();
        let path = programs.path(&installed(&programs, "one"));
        let file = || fs::metadata(&path).unwrap().ino();
        let before = file();
        installed(&programs, "one");
        assert_eq!(file(), before);
        assert!(!programs.incoming("t1").unwrap().exists());
        fs::write(&path, "on").unwrap();
        installed(&programs, "one");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }

    #[test]
    fn a_truncated_record_is_reported_with_its_path_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(RECORD), "{\"curr").unwrap();
        let error = Programs::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("current") && error.contains("installed program"),
            "{error}"
        );
    }
}
