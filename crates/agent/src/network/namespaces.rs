//! All network namespaces of the guest: each container has one.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

/// A network namespace, which lives at least as long as this.
pub(super) struct Namespace(File);

impl Namespace {
    /// Where whoever opened `path` lives: `/proc/…/ns/net`.
    pub(super) fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Has this thread, and no other, live there.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    fn number(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.ino())
    }
}

/// Those that some process lives in, each once, this thread's first.
///
/// One in which none does is not found, though a descriptor or a mount may keep it, and a process elsewhere a socket
/// that was made in it. Nor is that of a single thread that has left its process's.
pub(super) fn all() -> io::Result<Vec<Namespace>> {
    let own = Namespace::at("/proc/thread-self/ns/net")?;
    let mut known = HashSet::from([own.number()?]);
    let mut all = vec![own];
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path().join("ns/net");
        // What is no process has none, and one that is gone needs none.
        if fs::metadata(&path).is_ok_and(|metadata| known.insert(metadata.ino())) {
            all.extend(Namespace::at(&path));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Machine, *};

    #[test]
    fn a_namespace_that_a_process_lives_in_is_found_once_and_ours_is_the_first() {
        let Some(machine) = Machine::new() else { return };
        let numbers: Vec<_> = all().unwrap().iter().map(|one| one.number().unwrap()).collect();
        assert_eq!(numbers[0], Namespace::at("/proc/thread-self/ns/net").unwrap().number().unwrap());
        let there = machine.namespace().number().unwrap();
        assert_eq!(numbers.iter().filter(|number| **number == there).count(), 1, "{there} in {numbers:?}");
        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len());
    }
}
