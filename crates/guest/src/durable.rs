//! What has its name in a cache is trusted for ever, so it must be whole whenever it has it.

use rustix::fs::syncfs;
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Renames the file or folder `from` to `to` once all that it holds is on the disk: after a power cut there is all of
/// it or nothing.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let opened = File::open(from)?;
    if opened.metadata()?.is_dir() {
        syncfs(&opened)?; // Thousands of files: one by one would take minutes.
    } else {
        opened.sync_all()?;
    }
    fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_get_their_names_and_what_cannot_be_synced_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::create_dir(at("b")).unwrap();
        fs::write(at("b/c"), "c").unwrap();
        rename(&at("a"), &at("one")).unwrap();
        rename(&at("b"), &at("two")).unwrap();
        assert_eq!(
            (fs::read_to_string(at("one")).unwrap(), fs::read_to_string(at("two/c")).unwrap()),
            ("a".into(), "c".into())
        );
        assert!(rename(&at("gone"), &at("three")).is_err());
    }
}
