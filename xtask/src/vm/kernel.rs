//! The kernels that virtual machines boot: Debian's own and the one that is backported to it, unpacked from
//! their packages, or any image of the caller's. Depends on `command` and `paths`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, progress, run},
    lab::state::remove_folder,
    paths,
};

/// The package that depends on Debian's newest kernel of the release, the one with all drivers.
const NEWEST: &str = "linux-image-amd64";
/// The release of Debian that the lab's programs are of.
const RELEASE: &str = "bookworm";
/// What Debian's archives are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debian {
    /// The release's own.
    Release,
    /// The newest one that is backported to the release.
    Backports,
}

impl Debian {
    /// Where it is unpacked, below the folder of virtual machines.
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "kernel",
            Self::Backports => "kernel-backports",
        }
    }
}

/// A kernel, where it has been unpacked: the image, with its modules beside it as a file system has them
/// (`boot/vmlinuz-V`, `lib/modules/V`). `None` before [`unpack`].
///
/// # Errors
/// When the folder cannot be read.
pub fn unpacked(which: Debian) -> Result<Option<PathBuf>> {
    let folder = paths::vm().join(which.folder()).join("boot");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(None);
    };
    for entry in entries {
        let path = entry
            .with_context(|| format!("could not read {}", folder.display()))?
            .path();
        if version(&path).is_some() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The backported kernel, unpacked if it is not yet.
///
/// # Errors
/// As [`unpack`].
pub fn backports() -> Result<PathBuf> {
    if unpacked(Debian::Backports)?.is_none() {
        unpack(Debian::Backports)?;
    }
    unpacked(Debian::Backports)?.context("the backported kernel is not where it was unpacked")
}

/// Downloads the package of a kernel and unpacks it; it is not installed, this machine's own kernel stays the
/// one it boots.
///
/// # Errors
/// When there is no such package, or it cannot be downloaded or unpacked.
pub fn unpack(which: Debian) -> Result<()> {
    let lists = match which {
        Debian::Release => Vec::new(),
        Debian::Backports => backports_lists()?,
    };
    let package = newest_package(&lists)?;
    let draft = paths::vm().join(which.folder()).with_extension("new");
    remove_folder(&draft)?;
    fs::create_dir_all(&draft).with_context(|| format!("could not create {}", draft.display()))?;
    let mut download = command(["apt-get"]);
    download.args(&lists).args(["download", &package]);
    progress(
        &format!("Debian package {package}, to unpack"),
        "kernel-download",
        download.current_dir(&draft),
    )?;
    let archive = fs::read_dir(&draft)
        .with_context(|| format!("could not read {}", draft.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no package to {}", draft.display()))?;
    run(command(["dpkg-deb", "--extract"]).args([&archive, &draft]))?;
    fs::remove_file(&archive).with_context(|| format!("could not remove {}", archive.display()))?;
    let version = package.trim_start_matches("linux-image-");
    // The package leaves this to its installation.
    run(command(["depmod", "--all", "--basedir"]).arg(&draft).arg(version))?;
    let folder = paths::vm().join(which.folder());
    remove_folder(&folder)?;
    fs::rename(&draft, &folder).with_context(|| format!("could not create {}", folder.display()))
}

/// Options by which apt reads lists of backported packages, which are kept apart: this machine's own lists,
/// and what it would install, stay as they are.
fn backports_lists() -> Result<Vec<String>> {
    let format = "--format=$(REPO_URI) $(CODENAME)";
    let targets = run(&mut command([
        "apt-get",
        "indextargets",
        format,
        "Created-By: Packages",
    ]))?;
    let (site, release) = parse_site(&targets)
        .with_context(|| format!("`apt-get indextargets` names no archive of {RELEASE}"))?;
    let folder = paths::vm().join("apt");
    let sources = folder.join("sources");
    for folder in [sources.as_path(), &folder.join("lists/partial")] {
        fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    }
    let path = sources.join("backports.sources");
    let text = format!(
        "Types: deb\nURIs: {site}\nSuites: {release}-backports\nComponents: main\nSigned-By: {KEYRING}\n"
    );
    fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    let folder = fs::canonicalize(&folder).with_context(|| format!("could not find {}", folder.display()))?;
    let options: Vec<String> = [
        "Dir::Etc::SourceList=/dev/null".to_owned(),
        format!("Dir::Etc::SourceParts={}", folder.join("sources").display()),
        format!("Dir::State::Lists={}", folder.join("lists").display()),
        format!("Dir::Cache={}", folder.display()),
    ]
    .into_iter()
    .flat_map(|option| ["--option".to_owned(), option])
    .collect();
    let mut update = command(["apt-get"]);
    progress(
        "package lists of backports",
        "apt-update-backports",
        update.args(&options).arg("update"),
    )?;
    Ok(options)
}

/// The archive that has the release itself, and the release's name.
fn parse_site(targets: &str) -> Option<(&str, &str)> {
    let mut targets = targets.lines().filter_map(|line| line.split_once(' '));
    targets.find(|(_, release)| *release == RELEASE)
}

fn newest_package(lists: &[String]) -> Result<String> {
    let depends = run(command(["apt-cache"]).args(lists).args(["depends", NEWEST]))?;
    parse_dependency(&depends).with_context(|| {
        format!("`apt-cache depends {NEWEST}` names no kernel; give one by --kernel and --modules")
    })
}

fn parse_dependency(depends: &str) -> Option<String> {
    let line = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))?;
    line.starts_with("linux-image-").then(|| line.to_owned())
}

/// A caller's image with a caller's modules, staged as a file system has them, which is where virtme-ng
/// looks; the image itself where its modules are beside it already.
///
/// # Errors
/// When something is not there, or the stage cannot be made.
pub fn staged(image: &Path, modules: Option<&Path>) -> Result<PathBuf> {
    let image = fs::canonicalize(image).with_context(|| format!("there is no kernel {}", image.display()))?;
    let Some(modules) = modules else {
        return Ok(image);
    };
    let modules = fs::canonicalize(modules)
        .with_context(|| format!("there is no folder of modules {}", modules.display()))?;
    if !modules.join("kernel").is_dir() {
        bail!(
            "{} is no folder of modules: give the one that is named after the kernel's version",
            modules.display()
        );
    }
    let name = modules
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no name", modules.display()))?;
    let stage = paths::vm().join("staged").join(name);
    remove_folder(&stage)?;
    let (boot, lib) = (stage.join("boot"), stage.join("lib/modules"));
    for folder in [&boot, &lib] {
        fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    }
    let link = |target: &Path, at: &Path| {
        symlink(target, at).with_context(|| format!("could not create {}", at.display()))
    };
    let staged = boot.join(format!("vmlinuz-{name}"));
    link(&image, &staged)?;
    link(&modules, &lib.join(name))?;
    Ok(staged)
}

/// The version in an image's name.
fn version(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_package_depends_on() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Suggests: linux-doc\n";
        assert_eq!(
            parse_dependency(text).as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(
            parse_dependency("linux-image-amd64\n  Depends: <virtual>\n"),
            None
        );
    }

    #[test]
    fn backports_are_where_the_release_is() {
        let text = "http://a/security/ bookworm-security\nhttp://a/debian/ bookworm\nhttp://a/debian/ bookworm-updates\n";
        assert_eq!(parse_site(text), Some(("http://a/debian/", "bookworm")));
        assert_eq!(parse_site("http://a/ubuntu/ noble\n"), None);
    }

    #[test]
    fn an_image_is_known_by_its_name() {
        assert_eq!(
            version(Path::new("/boot/vmlinuz-6.1.0-56-amd64")),
            Some("6.1.0-56-amd64")
        );
        assert_eq!(version(Path::new("/boot/System.map-6.1.0-56-amd64")), None);
    }

    #[test]
    fn a_kernel_that_is_not_there_is_named() {
        let error = staged(Path::new("/no/such/kernel"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/kernel"), "{error}");
    }
}
