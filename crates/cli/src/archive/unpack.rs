//! From an archive that a guest made onto this computer. Nothing in it is trusted: whatever it says, nothing outside
//! the target is touched, no device is made and no set-user-id bit survives.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive ends early or makes no sense.
    #[error("cannot read what the VM sent")]
    Read(#[source] io::Error),
    /// The target cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An entry would lie elsewhere.
    #[error("the VM sent {0:?}, which lies outside what was asked for")]
    Outside(PathBuf),
    /// A link or file is where a folder would have to be.
    #[error("{} is in the way: it is not a folder", .0.display())]
    NotFolder(PathBuf),
    /// A folder is where a file would have to be.
    #[error("{} is in the way: it is a folder", .0.display())]
    Folder(PathBuf),
}

/// Unpacks `archive`, whose entries all begin with one component, so that this component becomes `target`. Answers
/// how many entries were left out because they are neither files, folders nor links.
pub(crate) fn unpack(archive: impl Read, target: &Path) -> Result<usize, UnpackError> {
    let mut archive = Archive::new(archive);
    let mut base = None;
    let mut left_out = 0;
    // Modes of folders come last: a folder may be read-only.
    let mut folder_modes = Vec::new();
    for entry in archive.entries().map_err(UnpackError::Read)? {
        let mut entry = entry.map_err(UnpackError::Read)?;
        let name = entry.path().map_err(UnpackError::Read)?.into_owned();
        let (first, rest) = split(&name).ok_or_else(|| UnpackError::Outside(name.clone()))?;
        let base = &*base.get_or_insert_with(|| first.to_owned());
        if first != *base {
            return Err(UnpackError::Outside(name));
        }
        let path = place(target, &rest)?;
        if !unpack_entry(&mut entry, base, target, &path, &mut folder_modes)? {
            left_out += 1;
        }
    }
    for (path, mode) in folder_modes.into_iter().rev() {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(|source| UnpackError::Write { path, source })?;
    }
    Ok(left_out)
}

/// Unpacks one entry to `path`; `false` when it is of a kind that is left out.
fn unpack_entry<R: Read>(
    entry: &mut Entry<'_, R>,
    base: &OsStr,
    target: &Path,
    path: &Path,
    folder_modes: &mut Vec<(PathBuf, u32)>,
) -> Result<bool, UnpackError> {
    let failed = |source| UnpackError::Write { path: path.into(), source };
    let mode = entry.header().mode().map_err(UnpackError::Read)? & 0o777;
    match entry.header().entry_type() {
        EntryType::Directory => {
            if make_folder(path)? {
                folder_modes.push((path.to_owned(), mode));
            }
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            make_way(path)?;
            entry.set_preserve_permissions(false);
            entry.unpack(path).map_err(failed)?;
        }
        EntryType::Symlink => {
            let link = entry.link_name().map_err(UnpackError::Read)?.unwrap_or_default().into_owned();
            make_way(path)?;
            symlink(link, path).map_err(failed)?;
        }
        EntryType::Link => {
            let link = entry.link_name().map_err(UnpackError::Read)?.unwrap_or_default().into_owned();
            let (first, rest) = split(&link).ok_or_else(|| UnpackError::Outside(link.clone()))?;
            if first != *base {
                return Err(UnpackError::Outside(link));
            }
            let original = place(target, &rest)?;
            make_way(path)?;
            fs::hard_link(original, path).map_err(failed)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The first component of a path, and the rest, if it consists of names alone.
fn split(name: &Path) -> Option<(std::ffi::OsString, PathBuf)> {
    let mut names = Vec::new();
    for component in name.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => (),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    let (first, rest) = names.split_first()?;
    Some(((*first).to_owned(), rest.iter().collect()))
}

/// Where `rest` lies below `target`. Every folder on the way is a real one (made when missing), never a link that the
/// archive, or anyone, put there.
fn place(target: &Path, rest: &Path) -> Result<PathBuf, UnpackError> {
    let mut path = target.to_owned();
    for name in rest.components() {
        if path == target && fs::metadata(target).is_ok_and(|metadata| metadata.is_dir()) {
            // The target itself was named by the user and may well be a link to a folder.
        } else {
            make_folder(&path)?;
        }
        path.push(name);
    }
    Ok(path)
}

/// Makes the folder `path` unless it is one; answers whether it did.
fn make_folder(path: &Path) -> Result<bool, UnpackError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(false),
        Ok(_) => Err(UnpackError::NotFolder(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(path).map(|()| true).map_err(|source| UnpackError::Write { path: path.into(), source })
        }
        Err(source) => Err(UnpackError::Write { path: path.into(), source }),
    }
}

/// Removes what is at `path`, unless it is a folder.
fn make_way(path: &Path) -> Result<(), UnpackError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(UnpackError::Folder(path.into())),
        Ok(_) => fs::remove_file(path).map_err(|source| UnpackError::Write { path: path.into(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(UnpackError::Write { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    /// An archive of entries (name, kind, link target, contents), names taken as they are.
    fn archive(entries: &[(&str, EntryType, &str, &str)]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        for (name, kind, link, contents) in entries {
            let mut header = Header::new_gnu();
            // The safe setters refuse what a hostile guest sends.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o6755);
            header.set_size(contents.len() as u64);
            header.set_cksum();
            archive.append(&header, contents.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    use EntryType::{Char, Directory, Link, Regular, Symlink};

    #[test]
    fn the_first_component_becomes_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("here");
        let bytes = archive(&[
            ("www/", Directory, "", ""),
            ("www/a", Regular, "", "1"),
            ("www/b", Link, "www/a", ""),
            ("www/c", Symlink, "/anywhere", ""),
            ("www/null", Char, "", ""),
        ]);

        assert_eq!(unpack(&bytes[..], &target).unwrap(), 1, "the device is left out");

        assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "1");
        assert_eq!(fs::read_link(target.join("c")).unwrap(), Path::new("/anywhere"));
        assert!(!target.join("null").exists());
        let mode = fs::metadata(target.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "a guest cannot leave a set-user-id program behind");
    }

    #[test]
    fn nothing_outside_the_target_is_touched() {
        let cases: [&[(&str, EntryType, &str, &str)]; 7] = [
            &[("www/../../evil", Regular, "", "x")],
            &[("/evil", Regular, "", "x")],
            &[("www/", Directory, "", ""), ("evil", Regular, "", "x")],
            &[("www/", Directory, "", ""), ("www/l", Symlink, "..", ""), ("www/l/evil", Regular, "", "x")],
            &[("www/", Directory, "", ""), ("www/l", Link, "../secret", "")],
            &[("www/", Directory, "", ""), ("www/l", Link, "secret", "")],
            &[("www/", Directory, "", ""), ("www/l", Symlink, "..", ""), ("www/m", Link, "www/l/secret", "")],
        ];
        for (index, entries) in cases.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("secret"), "s").unwrap();
            let target = dir.path().join("here");
            let error = unpack(&archive(entries)[..], &target).unwrap_err();
            assert!(matches!(error, UnpackError::Outside(_) | UnpackError::NotFolder(_)), "case {index}: {error}");
            assert!(!dir.path().join("evil").exists(), "case {index}");
            assert!(!target.join("m").exists() && !target.join("l/secret").is_symlink(), "case {index}");
        }
    }

    #[test]
    fn a_folder_is_not_replaced_by_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&archive(&[("a", Regular, "", "x")])[..], dir.path()).unwrap_err();
        assert!(matches!(error, UnpackError::Folder(_)), "{error}");
    }

    #[test]
    fn half_an_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[("a", Regular, "", &"x".repeat(5_000))]);
        assert!(unpack(&bytes[..3_000], &dir.path().join("a")).is_err());
    }
}
