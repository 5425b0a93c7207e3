//! Resolves relative paths against a folder. Pure: accesses no file.

use std::path::{Component, Path, PathBuf};

/// `text` relative to `folder`, unless it is absolute; `.` and `..` are resolved.
pub(crate) fn absolute(folder: &Path, text: &str) -> String {
    let mut path = PathBuf::new();
    for component in folder.join(text).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => path.push(component),
        }
    }
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_resolved() {
        for (text, expected) in [
            ("./a", "/home/me/a"),
            ("../a/./b", "/home/a/b"),
            ("/a/../b", "/b"),
            (".", "/home/me"),
            ("../../../..", "/"),
        ] {
            assert_eq!(absolute(Path::new("/home/me"), text), expected);
        }
    }
}
