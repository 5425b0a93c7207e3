//! The programs' folder: one folder for each, named by its digest, and the record. Everything appears whole or not at
//! all. Imports the record.

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

/// The record's name.
const RECORD: &str = "current";
/// What a program is called in its folder, and in images.
const PROGRAM: &str = "mesh-agent";
/// What is on its way to be a program.
const INCOMING: &str = ".incoming-";
/// This process's own program, whatever has become of its file.
const OWN: &str = "/proc/self/exe";

/// The programs of this node's agent.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
    record: Mutex<Record>,
    own: OnceLock<Digest>,
}

impl Programs {
    /// Opens a folder; there need not be one yet.
    ///
    /// # Errors
    /// When there is a record that cannot be read.
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

    /// What is remembered.
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
    /// When it cannot be written; then nothing has changed.
    pub fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, ProgramError> {
        let mut known = self.lock();
        let mut record = known.clone();
        let answer = change(&mut record);
        if record != *known {
            self.make()?;
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

    /// The current program has proven itself: those that are not needed any more go.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn prove(&self) -> Result<(), ProgramError> {
        if self.change(Record::prove)? {
            alarm::cancel();
            let record = self.record();
            info!(
                program = record.current.as_ref().map(Digest::short),
                "this program of the agent has proven itself"
            );
            self.prune();
        }
        Ok(())
    }

    /// The digest of the program that this process runs. Reads all of it at the first call.
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

    /// Where a program is, or would be.
    #[must_use]
    pub fn path(&self, program: &Digest) -> PathBuf {
        self.folder.join(program.as_str()).join(PROGRAM)
    }

    /// Whether a program is there.
    #[must_use]
    pub fn has(&self, program: &Digest) -> bool {
        self.path(program).is_file()
    }

    /// Where a program may be put together, for one task. What an earlier agent has left half done goes.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn incoming(&self, task: &str) -> Result<PathBuf, ProgramError> {
        self.make()?;
        self.remove(|name| name.starts_with(INCOMING));
        Ok(self.folder.join(format!("{INCOMING}{task}")))
    }

    /// Takes a whole program over, from where it was put together. One that is there already stays: it may be running.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install(&self, incoming: &Path) -> Result<Digest, ProgramError> {
        let program = Digest::of_file(incoming).map_err(ProgramError::file("read", incoming))?;
        let path = self.path(&program);
        if Digest::of_file(&path).is_ok_and(|found| found == program) {
            fs::remove_file(incoming).map_err(ProgramError::file("remove", incoming))?;
            return Ok(program);
        }
        let folder = self.folder.join(program.as_str());
        make_folder(&folder)?;
        fs::rename(incoming, &path).map_err(ProgramError::file("replace", &path))?;
        sync(&folder)?;
        sync(&self.folder)?;
        Ok(program)
    }

    /// Removes the programs that nobody needs.
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
                warn!(%error, path = %path.display(), "an old program of the agent stays");
            }
        }
    }

    fn make(&self) -> Result<(), ProgramError> {
        make_folder(&self.folder)
    }
}

fn make_folder(path: &Path) -> Result<(), ProgramError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(path).map_err(ProgramError::file("make", path))
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

/// Makes sure that names in a folder outlast a power failure.
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
        let there: Vec<bool> = all
            .iter()
            .map(|program| programs.path(program).is_file())
            .collect();
        assert_eq!(there, [false, true, true]);
    }

    #[test]
    fn a_program_that_is_there_stays_and_a_damaged_one_is_replaced() {
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
    fn a_torn_record_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(RECORD), "{\"curr").unwrap();
        let error = Programs::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("current") && error.contains("installed program"),
            "{error}"
        );
    }
}
