//! From this computer into an archive.

use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How much is handed over at once.
const CHUNK: usize = pando_wire::agent::CHUNK;
/// How many chunks wait between the disk and the connection.
const CHUNKS_AHEAD: usize = 8;

/// Why a folder or file cannot be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// It cannot be read, or it has vanished.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It became shorter between being listed and being read.
    #[error("{} became shorter while it was being read", .0.display())]
    Shorter(PathBuf),
    /// The archive has nowhere to go, which the receiver explains better.
    #[error("cannot send {}", .path.display())]
    Send {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whose the entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// As on this computer.
    Kept,
    /// Root's: somebody's files, copied into a guest that has never heard of them.
    Root,
}

/// Packs `root` into `sink`: with `name`, as an entry of that name and what is below it; without, only what is below
/// it. Stays on one file system, does not follow symbolic links below `root`, keeps hard links, modes and times, and
/// leaves sockets out. Sparse files are packed with their holes filled by zeroes; extended attributes are not packed.
pub(crate) fn pack(root: &Path, name: Option<&Path>, owners: Owners, sink: impl Write) -> Result<(), PackError> {
    let metadata = fs::metadata(root).map_err(|source| PackError::Read { path: root.into(), source })?;
    let mut packer = Packer {
        archive: Builder::new(BufWriter::with_capacity(CHUNK, sink)),
        owners,
        device: metadata.dev(),
        linked: HashMap::new(),
    };
    match name {
        Some(name) => packer.entry(root, name, &metadata)?,
        None => packer.folder(root, Path::new(""))?,
    }
    let sent = packer.archive.into_inner().and_then(|mut sink| sink.flush());
    sent.map_err(|source| PackError::Send { path: root.into(), source })
}

/// Packs in a thread of its own; the receiver gets the archive, and an error in place of its end when that was not
/// reached.
pub(crate) fn stream(
    root: PathBuf,
    name: Option<PathBuf>,
    owners: Owners,
) -> (mpsc::Receiver<io::Result<Bytes>>, JoinHandle<Result<(), PackError>>) {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let packing = tokio::task::spawn_blocking(move || {
        let packed = pack(&root, name.as_deref(), owners, Sink(&sender));
        if packed.is_err() {
            // A receiver that is gone has its own reason.
            let _ = sender.blocking_send(Err(io::Error::other("the archive is incomplete")));
        }
        packed
    });
    (receiver, packing)
}

/// How many bytes of files lie below `root`, as far as they can be listed: for a progress bar.
pub(crate) fn total_bytes(root: &Path) -> u64 {
    let mut total = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) if metadata.is_file() => total += metadata.len(),
                _ => (), // Has no bytes, or packing will say what is wrong with it.
            }
        }
    }
    total
}

struct Packer<W: Write> {
    archive: Builder<BufWriter<W>>,
    owners: Owners,
    /// The file system that is not left.
    device: u64,
    /// Files with several names: device and inode, and the name they are packed under.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    /// What is in the folder `path`, in the order of its names.
    fn folder(&mut self, path: &Path, name: &Path) -> Result<(), PackError> {
        let failed = |source| PackError::Read { path: path.into(), source };
        let mut entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = entry.metadata().map_err(|source| PackError::Read { path: path.clone(), source })?;
            self.entry(&path, &name.join(entry.file_name()), &metadata)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), PackError> {
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(()); // Nothing listens on a copy of it.
        }
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        header.set_size(0);
        if self.owners == Owners::Root {
            header.set_uid(0);
            header.set_gid(0);
        }
        let failed = |source| PackError::Send { path: path.into(), source };
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| PackError::Read { path: path.into(), source })?;
            return self.archive.append_link(&mut header, name, target).map_err(failed);
        }
        if kind.is_dir() {
            self.archive.append_data(&mut header, name, io::empty()).map_err(failed)?;
            return if metadata.dev() == self.device { self.folder(path, name) } else { Ok(()) };
        }
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&inode) {
                header.set_entry_type(EntryType::Link);
                return self.archive.append_link(&mut header, name, first).map_err(failed);
            }
            self.linked.insert(inode, name.to_owned());
        }
        if !kind.is_file() {
            return self.archive.append_data(&mut header, name, io::empty()).map_err(failed);
        }
        header.set_size(metadata.len());
        let file = File::open(path).map_err(|source| PackError::Read { path: path.into(), source })?;
        let mut reader = Exactly { file: file.take(metadata.len()), error: None };
        let appended = self.archive.append_data(&mut header, name, &mut reader);
        match (appended, reader.error) {
            (Err(_), Some(source)) => Err(PackError::Read { path: path.into(), source }),
            (Err(source), None) => Err(failed(source)),
            (Ok(()), _) if reader.file.limit() > 0 => Err(PackError::Shorter(path.into())),
            (Ok(()), _) => Ok(()),
        }
    }
}

/// As much of a file as its header announces, remembering which side an error came from.
struct Exactly {
    file: io::Take<File>,
    error: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(error);
            }
            kind.into()
        })
    }
}

/// The writing end of the channel to the connection.
struct Sink<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.0.blocking_send(Ok(Bytes::copy_from_slice(chunk))).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last component of `path`, which may end in `/`, `.` or `..`.
pub(crate) fn base_name(path: &Path) -> io::Result<PathBuf> {
    let full = match path.file_name() {
        Some(_) if !path.as_os_str().as_bytes().ends_with(b"/.") => path.to_owned(),
        _ => fs::canonicalize(path)?,
    };
    full.file_name().map(PathBuf::from).ok_or_else(|| io::Error::other("it has no name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    /// Path, kind, mode, link target and contents of every entry.
    fn entries(archive: &[u8]) -> Vec<(String, EntryType, u32, Option<String>, String)> {
        let mut archive = tar::Archive::new(archive);
        let entry = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut contents = String::new();
            entry.read_to_string(&mut contents).unwrap();
            (path, entry.header().entry_type(), entry.header().mode().unwrap() & 0o7777, link, contents)
        };
        archive.entries().unwrap().map(entry).collect()
    }

    #[test]
    fn a_folder_is_packed_with_its_links_and_modes_and_without_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::write(root.join("bin/sh"), "#!").unwrap();
        fs::set_permissions(root.join("bin/sh"), PermissionsExt::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("bin/sh"), root.join("bin/zsh")).unwrap();
        symlink("/etc", root.join("link")).unwrap(); // Leads to a folder that must not be followed.
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let long = "n".repeat(180);
        fs::write(root.join(&long), "long").unwrap();

        let mut archive = Vec::new();
        pack(root, None, Owners::Root, &mut archive).unwrap();

        let entries = entries(&archive);
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["bin", "bin/sh", "bin/zsh", "link", &long]);
        assert_eq!((entries[1].1, entries[1].2, entries[1].4.as_str()), (EntryType::Regular, 0o4755, "#!"));
        assert_eq!((entries[2].1, entries[2].3.as_deref()), (EntryType::Link, Some("bin/sh")));
        assert_eq!((entries[3].1, entries[3].3.as_deref()), (EntryType::Symlink, Some("/etc")));
        assert_eq!(entries[4].4, "long");
    }

    #[test]
    fn with_a_name_the_folder_itself_is_an_entry_of_that_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        let mut archive = Vec::new();
        pack(dir.path(), Some(Path::new("new")), Owners::Root, &mut archive).unwrap();
        let names: Vec<_> = entries(&archive).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, ["new", "new/a"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = pack(Path::new("/nowhere/at/all"), None, Owners::Root, io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/at/all");
    }

    #[test]
    fn a_file_that_became_shorter_is_named_and_not_padded() {
        // Linux says that this file has a page of bytes; it has fewer.
        let short = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
        if !short.exists() {
            eprintln!("skipped: no {}", short.display());
            return;
        }
        let error = pack(short, Some(Path::new("x")), Owners::Root, io::sink()).unwrap_err();
        assert!(matches!(error, PackError::Shorter(_)), "{error}");
    }
}
