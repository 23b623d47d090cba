//! The promises of a disk. Start with `forks.rs`; `model.rs` then tries everything at random.

mod faults; // hosts that are full, and syncs that fail
mod forks; // who sees what after a fork
mod model; // random histories against a plain array, with kills and power cuts
mod plain; // one disk, no fork
pub(crate) mod power; // what would be left after a power cut
mod since; // what is unchanged since an earlier seal
mod tampered; // journals that lie

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{DATA_FILE, Disk, Files, JOURNAL_FILE, OpenError};

/// A directory with a base and layers, each layer in a directory of its own.
pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    /// A bench whose base has `base_bytes` bytes, none of them zero.
    pub(crate) fn new(base_bytes: usize) -> Self {
        // Memory where possible: these tests sync all the time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::write(dir.path().join("base"), base_contents(base_bytes)).unwrap();
        Self { dir }
    }

    pub(crate) fn layer(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn base(&self) -> File {
        File::open(self.layer("base")).unwrap()
    }

    /// New files for a layer `name`, above the layers named in `inherited`.
    pub(crate) fn new_files(&self, name: &str, inherited: &[&str]) -> Files {
        let inherited = self.inherited(inherited, DATA_FILE);
        let (data, journal) = self.new_layer(name);
        Files { base: self.base(), inherited, data, journal }
    }

    /// The two empty files of a new layer `name`: its blocks and its journal.
    pub(crate) fn new_layer(&self, name: &str) -> (File, File) {
        let dir = self.layer(name);
        fs::create_dir(&dir).unwrap();
        let create = |file| OpenOptions::new().read(true).write(true).create_new(true).open(dir.join(file)).unwrap();
        let files = (create(DATA_FILE), create(JOURNAL_FILE));
        File::open(&dir).unwrap().sync_all().unwrap();
        files
    }

    /// The files that are there already.
    pub(crate) fn old_files(&self, name: &str, inherited: &[&str]) -> Files {
        let open = |file| OpenOptions::new().read(true).write(true).open(self.layer(name).join(file)).unwrap();
        let inherited = self.inherited(inherited, DATA_FILE);
        Files { base: self.base(), inherited, data: open(DATA_FILE), journal: open(JOURNAL_FILE) }
    }

    pub(crate) fn create(&self, name: &str, len_bytes: u64) -> Disk {
        Disk::create(self.new_files(name, &[]), len_bytes).unwrap()
    }

    /// Forks `parent`, whose layers are `layers`, into a child whose own layer is `name`.
    pub(crate) fn fork(&self, parent: &mut Disk, layers: &[&str], name: &str) -> Disk {
        parent.seal();
        Disk::branch(parent.sealed_copy(), self.new_files(name, layers)).unwrap()
    }

    pub(crate) fn recover(&self, name: &str, inherited: &[&str]) -> Result<Disk, OpenError> {
        Disk::recover(self.old_files(name, inherited), self.inherited(inherited, JOURNAL_FILE))
    }

    fn inherited(&self, layers: &[&str], file: &str) -> Vec<File> {
        layers.iter().map(|layer| File::open(self.layer(layer).join(file)).unwrap()).collect()
    }
}

/// What a base of `bytes` bytes holds.
pub(crate) fn base_contents(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 512 % 251) as u8 | 1).collect()
}

/// The bytes that `disk` holds at `offset`.
pub(crate) fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    disk.read_at(offset, &mut buffer).unwrap();
    buffer
}

/// Changes the byte at `at` of a file.
pub(crate) fn spoil(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}
