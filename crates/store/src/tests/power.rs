//! What a power cut leaves: everything that was synced, and of the rest whatever the disk happened to write.
//!
//! The content of a file that was not synced may be anything shorter, or zeroes; a name that was made, changed or removed
//! since its directory was synced may be as before or as after, each for itself.

use crate::local::Change;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What was done below a directory, in order.
type Log = Arc<Mutex<Recorded>>;

#[derive(Default)]
struct Recorded {
    events: Vec<Event>,
    /// Syncs of directories of this name fail.
    broken: Option<&'static str>,
    /// Nothing can be written.
    is_full: bool,
}

/// Whose changes are recorded.
static RECORDED: Mutex<Vec<(PathBuf, Log)>> = Mutex::new(Vec::new());

#[derive(Debug, Clone)]
pub(crate) enum Event {
    MakeDirectory(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDirectory(PathBuf),
    /// What the test knows from here on.
    Note(Note),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Note {
    Created,
    Done(String),
    Removing(String),
    Removed(String),
}

/// Records what is done below a directory, while it exists.
pub(crate) struct Recorder {
    root: PathBuf,
    log: Log,
}

impl Recorder {
    pub(crate) fn of(root: &Path) -> Self {
        let log = Log::default();
        RECORDED.lock().unwrap().push((root.to_owned(), log.clone()));
        Self { root: root.to_owned(), log }
    }

    pub(crate) fn note(&self, note: Note) {
        self.log.lock().unwrap().events.push(Event::Note(note));
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.log.lock().unwrap().events.clone()
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.log.lock().unwrap().is_full = is_full;
    }

    /// From now on.
    pub(crate) fn fail_syncs_of(&self, directory: &'static str) {
        self.log.lock().unwrap().broken = Some(directory);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        RECORDED.lock().unwrap().retain(|(root, _)| *root != self.root);
    }
}

/// Called for each change, which it makes: no other comes between that and the record of it.
pub(crate) fn on(what: Change<'_>, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (Change::MakeDirectory(at)
    | Change::Write(at, _)
    | Change::SyncFile(at)
    | Change::Rename(at, _)
    | Change::Remove(at)
    | Change::SyncDirectory(at)) = what;
    let recorded = RECORDED.lock().unwrap().iter().find(|(root, _)| at.starts_with(root)).cloned();
    let Some((root, log)) = recorded else { return make() };
    let below = |path: &Path| path.strip_prefix(&root).unwrap().to_owned();
    let mut log = log.lock().unwrap();
    // One that exists already is no change.
    let is_known = matches!(what, Change::MakeDirectory(path) if path.exists());
    if let Change::SyncDirectory(path) = what
        && log.broken.is_some_and(|broken| path.ends_with(broken))
    {
        return Err(io::Error::other("the disk is gone"));
    }
    if log.is_full && matches!(what, Change::Write(..)) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    if let Change::Write(..) | Change::SyncFile(_) = what {
        assert_nobody_waits(&root);
    }
    make()?;
    if !is_known {
        log.events.push(match what {
            Change::MakeDirectory(path) => Event::MakeDirectory(below(path)),
            Change::Write(path, bytes) => Event::Write(below(path), bytes.to_vec()),
            Change::SyncFile(path) => Event::SyncFile(below(path)),
            Change::Rename(from, to) => Event::Rename(below(from), below(to)),
            Change::Remove(path) => Event::Remove(below(path)),
            Change::SyncDirectory(path) => Event::SyncDirectory(below(path)),
        });
    }
    Ok(())
}

/// What takes its time is done while nobody holds the exclusive lock.
fn assert_nobody_waits(root: &Path) {
    if let Ok(lock) = File::open(root.join("store/lock")) {
        let taken = flock(&lock, FlockOperation::NonBlockingLockShared);
        assert!(taken.is_ok(), "something is written while everybody waits");
    }
}

#[derive(Clone)]
enum Inode {
    Directory,
    File(usize),
}

/// A disk that has seen some events.
#[derive(Default)]
struct Disk {
    /// The content of files, and whether it is synced.
    files: Vec<(Vec<u8>, bool)>,
    /// What processes see.
    seen: BTreeMap<PathBuf, Inode>,
    durable: BTreeMap<PathBuf, Inode>,
    /// What was done with names and is not synced.
    pending: Vec<(PathBuf, Option<Inode>)>,
}

impl Disk {
    fn after(events: &[Event]) -> Self {
        let mut disk = Self::default();
        for event in events {
            match event {
                Event::MakeDirectory(path) => disk.set(path, Some(Inode::Directory)),
                Event::Write(path, bytes) => {
                    disk.files.push((bytes.clone(), false));
                    disk.set(path, Some(Inode::File(disk.files.len() - 1)));
                }
                Event::SyncFile(path) => {
                    if let Some(Inode::File(file)) = disk.seen.get(path) {
                        disk.files[*file].1 = true;
                    }
                }
                Event::Rename(from, to) => {
                    let file = disk.seen.get(from).cloned();
                    disk.set(to, file);
                    disk.set(from, None);
                }
                Event::Remove(path) => disk.set(path, None),
                Event::SyncDirectory(directory) => {
                    let is_in = |(path, _): &mut (PathBuf, _)| path.parent() == Some(directory);
                    for (path, inode) in disk.pending.extract_if(.., is_in) {
                        apply(&mut disk.durable, &path, inode);
                    }
                }
                Event::Note(_) => (),
            }
        }
        disk
    }

    fn set(&mut self, path: &Path, inode: Option<Inode>) {
        apply(&mut self.seen, path, inode.clone());
        self.pending.push((path.to_owned(), inode));
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Inode>, path: &Path, inode: Option<Inode>) {
    match inode {
        Some(inode) => drop(names.insert(path.to_owned(), inode)),
        None => drop(names.remove(path)),
    }
}

/// Cuts the power after these events, and makes `to` what is found then. `choose` gives a number below the one it is given.
pub(crate) fn cut(events: &[Event], to: &Path, mut choose: impl FnMut(usize) -> usize) {
    let Disk { mut files, mut durable, pending, .. } = Disk::after(events);
    for (bytes, is_synced) in &mut files {
        match choose(3) {
            _ if *is_synced => (),
            0 => bytes.truncate(choose(bytes.len() + 1)),
            1 => bytes.fill(0),
            _ => (),
        }
    }
    // Often all or nothing, as a journal has it.
    let mood = choose(3);
    for (path, inode) in pending {
        if mood == 0 || (mood == 1 && choose(2) == 0) {
            apply(&mut durable, &path, inode);
        }
    }
    for (path, inode) in durable {
        let path = to.join(path);
        // A name in a directory that has none itself is lost.
        if path.parent().is_some_and(Path::exists) {
            match inode {
                Inode::Directory => fs::create_dir(path).unwrap(),
                Inode::File(file) => fs::write(path, &files[file].0).unwrap(),
            }
        }
    }
}
