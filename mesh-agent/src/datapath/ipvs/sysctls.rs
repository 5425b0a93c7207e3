//! Kernel settings that the data path needs. A file records their earlier values, so that they can be
//! restored even after the agent was killed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::record_file::{RecordError, RecordFile};

/// The values from before the mesh changed them, by path below `/proc/sys`.
type Before = BTreeMap<String, String>;

/// The settings of the calling thread's network namespace.
#[derive(Debug)]
pub(super) struct Sysctls {
    root: PathBuf,
    record: RecordFile,
    before: Before,
}

/// A setting could not be read, written or recorded.
#[derive(Debug, thiserror::Error)]
pub(super) enum SysctlError {
    #[error("cannot set {path} to {value}; in a container, the host's /proc/sys/net must be writable")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Sysctls {
    /// Reads an earlier agent's record; changes nothing.
    pub(super) fn open(root: &Path, record: &Path) -> Result<Self, SysctlError> {
        let record = RecordFile::new(record);
        Ok(Self {
            root: root.to_owned(),
            before: record.read()?,
            record,
        })
    }

    /// Reads a setting; `None` where the kernel (or the interface) does not have it.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, SysctlError> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SysctlError::Read(path, error)),
        }
    }

    /// Sets a setting, and records its earlier value if that differs. Does nothing where the kernel does not
    /// have it.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        let Some(found) = self.read(name)? else {
            return Ok(());
        };
        if found == value {
            return Ok(());
        }
        if !self.before.contains_key(name) {
            self.before.insert(name.to_owned(), found);
            self.record.write(&self.before)?;
        }
        self.write(name, value)
    }

    /// Widens a setting that is a range of numbers so far that it includes this one. An empty range (such as
    /// `1 0`) becomes this one alone.
    pub(super) fn include(&mut self, name: &str, number: u32) -> Result<(), SysctlError> {
        let found = self.read(name)?;
        match found.and_then(|found| widened(&found, number)) {
            Some(range) => self.set(name, &range),
            None => Ok(()),
        }
    }

    /// Restores what was changed, and removes the record.
    pub(super) fn restore(&mut self) -> Result<(), SysctlError> {
        while let Some((name, value)) = self.before.pop_first() {
            if self.read(&name)?.is_some()
                && let Err(error) = self.write(&name, &value)
            {
                self.before.insert(name, value);
                return Err(error);
            }
        }
        Ok(self.record.remove()?)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.root.join(name);
        fs::write(&path, value).map_err(|source| SysctlError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }
}

/// The range with the number; `None` if it has it, or is no range.
fn widened(range: &str, number: u32) -> Option<String> {
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return None;
    };
    if first > last {
        return Some(format!("{number} {number}"));
    }
    let is_in = (first..=last).contains(&number);
    (!is_in).then(|| format!("{} {}", first.min(number), last.max(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(settings: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("sys");
        for (name, value) in settings {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let record = folder.path().join("run/sysctls.json");
        (folder, root, record)
    }

    #[test]
    fn what_was_changed_is_restored_even_by_a_later_agent() {
        let (_folder, root, record) = kernel(&[("net/a", "0"), ("net/b", "1")]);
        let mut first = Sysctls::open(&root, &record).unwrap();
        first.set("net/a", "1").unwrap();
        first.set("net/b", "1").unwrap();
        assert_eq!(first.read("net/a").unwrap().as_deref(), Some("1"));
        drop(first);

        let mut second = Sysctls::open(&root, &record).unwrap();
        second.set("net/a", "2").unwrap();
        second.restore().unwrap();
        assert_eq!(second.read("net/a").unwrap().as_deref(), Some("0"));
        assert_eq!(second.read("net/b").unwrap().as_deref(), Some("1"));
        assert!(!record.exists());
    }

    #[test]
    fn a_range_is_widened_only_as_far_as_needed() {
        for (range, number, expected) in [
            ("1\t0", 0, Some("0 0")),
            ("1\t0", 7, Some("7 7")),
            ("1000\t2000", 0, Some("0 2000")),
            ("1000\t2000", 3000, Some("1000 3000")),
            ("0\t2147483647", 0, None),
            ("off", 0, None),
        ] {
            assert_eq!(
                widened(range, number).as_deref(),
                expected,
                "{range} with {number}"
            );
        }
    }

    #[test]
    fn a_setting_that_the_kernel_does_not_have_is_skipped() {
        let (_folder, root, record) = kernel(&[("net/a", "0")]);
        let mut sysctls = Sysctls::open(&root, &record).unwrap();
        sysctls.set("net/conf/gone/x", "1").unwrap();
        assert_eq!(sysctls.read("net/conf/gone/x").unwrap(), None);
        sysctls.restore().unwrap();
        assert!(!record.exists());
    }

    #[test]
    fn an_interface_that_is_gone_does_not_keep_the_rest_from_being_restored() {
        let (_folder, root, record) = kernel(&[("net/a", "0"), ("net/b", "0")]);
        let mut sysctls = Sysctls::open(&root, &record).unwrap();
        sysctls.set("net/a", "1").unwrap();
        sysctls.set("net/b", "1").unwrap();
        fs::remove_file(root.join("net/a")).unwrap();
        sysctls.restore().unwrap();
        assert_eq!(sysctls.read("net/b").unwrap().as_deref(), Some("0"));
    }
}
