//! The kernels that virtual machines boot: Debian's own, unpacked from its package, or any image of the
//! caller's. Depends on `command` and `paths`.

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

/// Debian's kernel, where it has been unpacked: the image, with its modules beside it as a file system
/// has them (`boot/vmlinuz-V`, `lib/modules/V`). `None` before [`unpack`].
///
/// # Errors
/// When the folder cannot be read.
pub fn unpacked() -> Result<Option<PathBuf>> {
    let folder = paths::vm().join("kernel/boot");
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

/// Downloads the package of Debian's kernel and unpacks it; it is not installed, this machine's own kernel
/// stays the one it boots.
///
/// # Errors
/// When there is no such package, or it cannot be downloaded or unpacked.
pub fn unpack() -> Result<()> {
    let package = newest_package()?;
    let draft = paths::vm().join("kernel.new");
    remove_folder(&draft)?;
    fs::create_dir_all(&draft).with_context(|| format!("could not create {}", draft.display()))?;
    let mut download = command(["apt-get", "download", &package]);
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
    let folder = paths::vm().join("kernel");
    remove_folder(&folder)?;
    fs::rename(&draft, &folder).with_context(|| format!("could not create {}", folder.display()))
}

fn newest_package() -> Result<String> {
    let depends = run(&mut command(["apt-cache", "depends", NEWEST]))?;
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
