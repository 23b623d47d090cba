//! Bytes that look like a guest's RAM: programs, libraries, text, zero pages, and some that do not compress.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const PAGE: usize = 4096;
/// Of a hundred pages of a guest that was used for a while: those never touched or freed again, those that are random
/// or compressed; the others come from files.
const ZERO_PERCENT: u64 = 40;
const RANDOM_PERCENT: u64 = 5;
/// Runs of pages of one sort, as an allocator makes them.
const RUN_PAGES: u64 = 24;

/// Random numbers that are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// RAM of `len` bytes, from what this computer has under `/usr`.
pub(crate) fn guest_ram(len: usize) -> io::Result<Vec<u8>> {
    let mut ram = vec![0; len];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut files = Files::below(&["/usr/lib/x86_64-linux-gnu", "/usr/bin", "/usr/share/doc", "/usr/lib/python3"])?;
    let mut rest = &mut ram[..];
    while !rest.is_empty() {
        let pages = 1 + random.next() % (2 * RUN_PAGES);
        let run = (pages as usize * PAGE).min(rest.len());
        let (bytes, after) = std::mem::take(&mut rest).split_at_mut(run);
        rest = after;
        match random.next() % 100 {
            0..ZERO_PERCENT => (),
            sort if sort < ZERO_PERCENT + RANDOM_PERCENT => fill(bytes, &mut random),
            _ => files.fill(bytes)?,
        }
    }
    Ok(ram)
}

/// Writes to so many pages, here and there: a few words of each, as a program does.
pub(crate) fn dirty(ram: &mut [u8], pages: usize, random: &mut Random) {
    let count = ram.len() / PAGE;
    for _ in 0..pages {
        let page = random.next() as usize % count * PAGE;
        for _ in 0..8 {
            let at = page + random.next() as usize % (PAGE / 8) * 8;
            ram[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
        }
    }
}

fn fill(bytes: &mut [u8], random: &mut Random) {
    bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = random.next().to_le_bytes());
}

/// The content of files, one after the other, each from a page's beginning as in a page cache.
struct Files {
    paths: std::vec::IntoIter<PathBuf>,
    open: Option<File>,
}

impl Files {
    fn below(folders: &[&str]) -> io::Result<Self> {
        let mut paths = Vec::new();
        folders.iter().for_each(|folder| list(Path::new(folder), &mut paths));
        paths.sort();
        // So that a short RAM has some of everything.
        let mut random = Random(1);
        (1..paths.len()).rev().for_each(|at| paths.swap(at, random.next() as usize % (at + 1)));
        Ok(Self { paths: paths.into_iter(), open: None })
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let read = match &mut self.open {
                Some(file) => file.read(bytes).unwrap_or(0),
                None => 0,
            };
            if read == 0 {
                let Some(path) = self.paths.next() else { return Ok(()) };
                self.open = File::open(path).ok();
                // On to the next page.
                let skip = bytes.len() % PAGE;
                bytes = &mut bytes[skip..];
            } else {
                bytes = &mut bytes[read..];
            }
        }
        Ok(())
    }
}

fn list(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = folder.read_dir() else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), paths),
            Ok(kind) if kind.is_file() => paths.push(entry.path()),
            _ => (),
        }
    }
}
