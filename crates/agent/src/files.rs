//! Put, Get and Stat.
//!
//! Limits: device nodes, FIFOs and sockets are refused by Put; Get leaves sockets out, and writes a file with several
//! links once per link. Extended attributes travel in neither direction. A file that grows or shrinks while it is read
//! arrives with the length that it had first, cut or filled up with zeroes.

use crate::{failure, peer::Peer};
use pando_wire::{
    agent::{CHUNK, Failure, FailureKind, Input, Reply},
    frame,
};
use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Builder, EntryType, Header};

/// Unpacks what the host sends below `path`.
pub(crate) fn put(root: &Path, peer: &Peer, path: &str) -> io::Result<()> {
    let mut incoming = Incoming { peer, chunk: Vec::new(), at: 0, ended: false };
    let outcome = unpack(&resolve(root, path), &mut incoming);
    // To the end also after a failure, or the host would be told of it by a reset.
    io::copy(&mut incoming, &mut io::sink())?;
    peer.conclude(outcome)
}

/// Packs `path` for the host.
pub(crate) fn get(root: &Path, peer: &Peer, path: &str) -> io::Result<()> {
    let mut outgoing = Outgoing { peer, chunk: Vec::with_capacity(CHUNK) };
    let outcome = pack(&resolve(root, path), &mut outgoing);
    if outcome.is_ok() {
        outgoing.flush()?;
    }
    peer.conclude(outcome)
}

/// What is at `path`; links are followed.
pub(crate) fn stat(root: &Path, peer: &Peer, path: &str) -> io::Result<()> {
    peer.reply(&match fs::metadata(resolve(root, path)) {
        Ok(metadata) => Reply::Stat { directory: metadata.is_dir(), len: metadata.len() },
        Err(error) => Reply::Failed(failure::because(format_args!("find {path}"), error)),
    })
}

/// `path` as the host means it: relative ones start at the root.
fn resolve(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn unpack(target: &Path, archive: &mut impl Read) -> Result<(), Failure> {
    let metadata =
        fs::metadata(target).map_err(|error| failure::because(format_args!("find {}", target.display()), error))?;
    if !metadata.is_dir() {
        return Err(failure::of(FailureKind::Other, format!("{} is not a directory", target.display())));
    }
    let mut archive = Archive::new(archive);
    archive.set_preserve_permissions(true);
    // Who is not root cannot give files away; that happens in tests alone.
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    let broken = |error| failure::because("read the archive", error);
    // Directories last, since one without write permission cannot be filled.
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        if path.components().any(|component| component == Component::ParentDir) {
            let message = format!("{} would lie outside of the directory to put to", path.display());
            return Err(failure::of(FailureKind::NotPermitted, message));
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                directories.push(entry);
                continue;
            }
            EntryType::Block | EntryType::Char | EntryType::Fifo => {
                let message = format!("{} is a device or a FIFO, which cannot be put", path.display());
                return Err(failure::of(FailureKind::Other, message));
            }
            _ => (), // Files and links; extensions were taken in by the reader.
        }
        unpack_entry(&mut entry, target, &path)?;
    }
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut directory in directories {
        let path = directory.path().map_err(broken)?.into_owned();
        unpack_entry(&mut directory, target, &path)?;
    }
    Ok(())
}

fn unpack_entry<R: Read>(entry: &mut tar::Entry<'_, R>, target: &Path, path: &Path) -> Result<(), Failure> {
    // The crate follows no link out of `target`: it resolves the parent of what it writes, and what a hard link means.
    match entry.unpack_in(target) {
        // Not unpacked is what has no name, `./`: the target itself.
        Ok(_) => Ok(()),
        Err(error) => Err(failure::because(format_args!("put {}", path.display()), error)),
    }
}

fn pack(path: &Path, archive: &mut impl Write) -> Result<(), Failure> {
    let failed = |error| failure::because(format_args!("get {}", path.display()), error);
    // The path itself may be a link that somebody typed; links below it stay links.
    let path = &fs::canonicalize(path).map_err(failed)?;
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = Builder::new(archive);
    append(&mut archive, path, &name)?;
    archive.finish().map_err(failed)
}

fn append(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| failure::because(format_args!("get {}", path.display()), error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    let kind = metadata.file_type();
    if kind.is_dir() {
        archive.append_data(&mut header, name, io::empty()).map_err(failed)?;
        let mut children: Vec<_> = fs::read_dir(path).and_then(Iterator::collect).map_err(failed)?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            match append(archive, &child.path(), &name.join(child.file_name())) {
                // It went away since the directory was read, as files of a running machine do.
                Err(failure) if failure.kind == FailureKind::NotFound => (),
                other => other?,
            }
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed)?;
        archive.append_link(&mut header, name, target).map_err(failed)?;
    } else if kind.is_file() {
        let file = File::open(path).map_err(failed)?;
        archive.append_data(&mut header, name, exactly(file, &metadata)).map_err(failed)?;
    } else if !kind.is_socket() {
        if kind.is_block_device() || kind.is_char_device() {
            let device = metadata.rdev();
            header.set_device_major(rustix::fs::major(device)).map_err(failed)?;
            header.set_device_minor(rustix::fs::minor(device)).map_err(failed)?;
        }
        archive.append_data(&mut header, name, io::empty()).map_err(failed)?;
    }
    Ok(())
}

/// As many bytes as the header says, whatever happens to the file meanwhile.
fn exactly(file: File, metadata: &Metadata) -> impl Read {
    file.chain(io::repeat(0)).take(metadata.len())
}

/// What the host sends, up to its empty frame.
struct Incoming<'a> {
    peer: &'a Peer,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            match frame::read(&mut &*self.peer)? {
                Some(Input::Stdin(bytes)) => {
                    self.ended = bytes.is_empty();
                    (self.chunk, self.at) = (bytes, 0);
                }
                Some(Input::Resize(_) | Input::Signal(_)) => (), // Mean nothing here.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let len = buffer.len().min(self.chunk.len() - self.at);
        buffer[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Frames for the host.
struct Outgoing<'a> {
    peer: &'a Peer,
    chunk: Vec<u8>,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..len]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.peer.reply(&Reply::Stdout(chunk))
    }
}
