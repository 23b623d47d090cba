//! Who writes a disk. Whoever does holds the lock of its layer: the daemon takes it with the file, and it belongs to the
//! open file, which only that VM's monitor has then (a fork of it closes its copy). So two can never write one layer, and
//! a monitor is found that has lost its socket. Everything here blocks.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Takes the lock of a layer, of which `data` are the blocks.
pub(crate) fn lock(data: &File) -> io::Result<()> {
    match flock(data, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process writes it")),
        result => Ok(result?),
    }
}

/// Whether anybody holds the lock of the file at `path`, which need not be there.
pub(super) fn is_held(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(file) => match lock(&file) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
            result => result.map(|()| false),
        },
    }
}

/// The processes that hold the lock of the file at `path`, as far as this user may see, without this one.
pub(super) fn holders(path: &Path) -> io::Result<Vec<u32>> {
    let wanted = fs::metadata(path)?;
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = processes.filter(|&pid: &u32| pid != std::process::id());
    Ok(others.filter(|&pid| holds(pid, (wanted.dev(), wanted.ino()))).collect())
}

/// Whether process `pid` holds a lock of the file with these numbers of device and inode.
fn holds(pid: u32, wanted: (u64, u64)) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| {
        // Gone, or not ours to see.
        let Ok(found) = fs::metadata(descriptor.path()) else { return false };
        let number = descriptor.file_name();
        let locks = || fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).unwrap_or_default();
        (found.dev(), found.ino()) == wanted && locks().contains("FLOCK")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_lock_goes_with_the_open_file_to_another_process_and_is_found_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let file = File::create_new(&path).unwrap();
        lock(&file).unwrap();
        let mut other = Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap();

        assert!(is_held(&path).unwrap());
        assert_eq!(lock(&File::open(&path).unwrap()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        let reading = Command::new("sleep").arg("60").stdin(File::open(&path).unwrap()).spawn();
        assert_eq!(holders(&path).unwrap(), [other.id()], "and not one that only reads it");

        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!is_held(&path).unwrap());
        let mut reading = reading.unwrap();
        reading.kill().unwrap();
        reading.wait().unwrap();
    }
}
