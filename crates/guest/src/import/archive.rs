//! A tar stream becomes a tree, and its files' contents a spool.

use std::io::{self, Read};

use mkext4::{Meta, SpecialKind};
use tar::{Archive, Entry, EntryType};

use crate::import::ImportError;
use crate::import::input::Input;
use crate::import::pax::{Pax, Stretch, read_sparse_map};
use crate::import::spool::{Content, Spool};
use crate::import::tree::{Node, Tree, TreeError, What, symlink_target};

/// The directories that the agent mounts on or writes to before anything of the image runs, and their modes.
const MOUNT_POINTS: [(&str, u16); 6] =
    [("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777)];

/// Reads all of `input`. Gives the tree, and an identity that follows from the bytes read.
pub(super) fn read(input: &mut Input<'_>, spool: &mut Spool) -> Result<(Tree, [u8; 16]), ImportError> {
    let watch = input.watch();
    let mut hashed = Hashed { input, hasher: blake3::Hasher::new() };
    let mut archive = Archive::new(&mut hashed);
    let mut tree = Tree::new();
    let mut is_first = true;
    let mut entries = archive.entries().map_err(|error| watch.explain(error))?;
    loop {
        watch.bound_header();
        let entry = entries.next();
        let mut entry = match entry {
            None => break,
            Some(Ok(entry)) => entry,
            Some(Err(error)) => {
                return Err(match watch.explain(error) {
                    ImportError::Damaged { .. } | ImportError::Truncated if is_first => ImportError::NotAnImage,
                    other => other,
                });
            }
        };
        watch.lift();
        is_first = false;
        take(&mut entry, &mut tree, spool, |error| watch.explain(error))?;
        // What is left of an entry is read here, so that reading the next header reads nothing but headers.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| watch.explain(error))?;
    }
    watch.lift();
    // An archive ends with a block of zeroes. One that just stops has lost something.
    if watch.has_ended() {
        return Err(ImportError::Truncated);
    }
    if is_first {
        return Err(ImportError::Empty);
    }
    // To the end, so that whoever writes to the pipe may finish, and the decompressor sees its checksum.
    io::copy(&mut hashed, &mut io::sink()).map_err(|error| watch.explain(error))?;
    for (name, mode) in MOUNT_POINTS {
        tree.ensure_directory(name, mode);
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&hashed.hasher.finalize().as_bytes()[..16]);
    Ok((tree, identity))
}

/// Takes one entry. `explain` says what an error from reading it means.
fn take(
    entry: &mut Entry<'_, impl Read>,
    tree: &mut Tree,
    spool: &mut Spool,
    explain: impl Fn(io::Error) -> ImportError,
) -> Result<(), ImportError> {
    let pax = read_pax(entry).map_err(&explain)?;
    let raw_path = match pax.sparse.as_ref().and_then(|sparse| sparse.name.as_ref()) {
        Some(name) => name.clone(),
        None => entry.path_bytes().into_owned(),
    };
    let shown_path = String::from_utf8_lossy(&raw_path).into_owned();
    let in_entry = |source| ImportError::Entry { path: shown_path.clone(), source };
    let unsupported = |what: &str| ImportError::Unsupported { path: shown_path.clone(), what: what.to_owned() };
    let path = String::from_utf8(raw_path).map_err(|_| in_entry(TreeError::NotText))?;

    let kind = entry.header().entry_type();
    let what = match kind {
        // Before directories had a type of their own, a slash at the end made one.
        EntryType::Regular if path.ends_with('/') => What::Directory(Default::default()),
        EntryType::Directory => What::Directory(Default::default()),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            What::File(take_content(entry, &pax, spool, &explain, &unsupported)?)
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default();
            What::Symlink(symlink_target(&target).map_err(in_entry)?)
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = String::from_utf8(target).map_err(|_| in_entry(TreeError::NotText))?;
            return tree.link(&path, &target).map_err(in_entry);
        }
        EntryType::Char | EntryType::Block => What::Special(device(entry, kind).map_err(in_entry)?),
        EntryType::Fifo => What::Special(SpecialKind::Fifo),
        // Says something about all entries that follow; nothing of it concerns a file system.
        EntryType::XGlobalHeader => return Ok(()),
        other if other.as_byte() == b'V' => return Ok(()), // The name of the volume.
        other => return Err(unsupported(&format!("an entry of type {:?}", char::from(other.as_byte())))),
    };
    let meta = meta(entry, &pax).map_err(in_entry)?;
    // ACLs have another form in ext4 than in an archive, and namespaces that Linux does not know cannot be stored.
    let is_kept = |name: &str| ["user.", "trusted.", "security."].iter().any(|known| name.starts_with(known));
    let attributes = pax.attributes.into_iter().filter(|(name, _)| is_kept(name)).collect();
    tree.put(&path, Node { what, meta, attributes }).map_err(in_entry)
}

fn read_pax(entry: &mut Entry<'_, impl Read>) -> io::Result<Pax> {
    let mut pax = Pax::default();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Ok(key) = extension.key() {
            pax.take(key, extension.value_bytes());
        }
    }
    Ok(pax)
}

fn take_content(
    entry: &mut Entry<'_, impl Read>,
    pax: &Pax,
    spool: &mut Spool,
    explain: &impl Fn(io::Error) -> ImportError,
    unsupported: &impl Fn(&str) -> ImportError,
) -> Result<Content, ImportError> {
    let len_bytes = entry.size();
    let content = match &pax.sparse {
        None if entry.header().entry_type() == EntryType::GNUSparse => spool.take_sparse(entry, len_bytes)?,
        None => spool.take(entry, len_bytes)?,
        Some(sparse) if sparse.version == (1, 0) => {
            let map = read_sparse_map(entry).map_err(explain)?;
            let mut expanded = Expanded::new(entry, map, sparse.real_bytes).map_err(explain)?;
            spool.take_sparse(&mut expanded, sparse.real_bytes)?
        }
        Some(_) => return Err(unsupported("a sparse file in an old format")),
    };
    content.map_err(explain)
}

fn device(entry: &Entry<'_, impl Read>, kind: EntryType) -> Result<SpecialKind, TreeError> {
    const MAX_MAJOR: u32 = 0xfff;
    const MAX_MINOR: u32 = 0xf_ffff;
    let number = |found: io::Result<Option<u32>>, most: u32| {
        let found = found.ok().flatten().unwrap_or(0);
        if found <= most {
            Ok(found)
        } else {
            Err(TreeError::Field { field: "device number", value: found.to_string() })
        }
    };
    let major = number(entry.header().device_major(), MAX_MAJOR)?;
    let minor = number(entry.header().device_minor(), MAX_MINOR)?;
    Ok(if kind == EntryType::Char { SpecialKind::Char { major, minor } } else { SpecialKind::Block { major, minor } })
}

fn meta(entry: &Entry<'_, impl Read>, pax: &Pax) -> Result<Meta, TreeError> {
    /// What ext4 can store: 34 bits, of which the first value is the most negative one of 32.
    const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;
    let header = entry.header();
    let unreadable = |field| move |error: io::Error| TreeError::Field { field, value: error.to_string() };
    let owner = |field, found: io::Result<u64>| {
        let found = found.map_err(unreadable(field))?;
        u32::try_from(found).map_err(|_| TreeError::Field { field, value: found.to_string() })
    };
    let (seconds, nanoseconds) = match pax.mtime {
        Some(time) => time,
        None => (header.mtime().map_err(unreadable("time"))?.cast_signed(), 0),
    };
    if !TIMES.contains(&seconds) {
        return Err(TreeError::Field { field: "time", value: seconds.to_string() });
    }
    let mode = header.mode().map_err(unreadable("mode"))? & 0o7777;
    let (uid, gid) = (owner("owner", header.uid())?, owner("group", header.gid())?);
    Ok(Meta::new(mode as u16, uid, gid, (seconds, nanoseconds)))
}

/// The bytes of a sparse file, holes as zeroes.
struct Expanded<'a, R> {
    data: &'a mut R,
    map: std::vec::IntoIter<Stretch>,
    stretch: Stretch,
    at: u64,
    end: u64,
}

impl<'a, R: Read> Expanded<'a, R> {
    fn new(data: &'a mut R, map: Vec<Stretch>, end: u64) -> io::Result<Self> {
        let mut least = 0;
        for (start, len) in &map {
            let stretch_end = start.checked_add(*len).filter(|stretch_end| least <= *start && *stretch_end <= end);
            least = stretch_end.ok_or_else(|| io::Error::other("the map of a sparse file is not in order"))?;
        }
        Ok(Self { data, map: map.into_iter(), stretch: (0, 0), at: 0, end })
    }
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.stretch.0 + self.stretch.1 <= self.at
            && let Some(next) = self.map.next()
        {
            self.stretch = next;
        }
        let (start, len) = self.stretch;
        if start <= self.at && self.at < start + len {
            let most = (start + len - self.at).min(buffer.len() as u64) as usize;
            let count = self.data.read(&mut buffer[..most])?;
            self.at += count as u64;
            return Ok(count);
        }
        let hole_end = if self.at < start { start } else { self.end };
        let count = (hole_end - self.at).min(buffer.len() as u64) as usize;
        buffer[..count].fill(0);
        self.at += count as u64;
        Ok(count)
    }
}

/// Hashes what is read.
struct Hashed<'a, R> {
    input: &'a mut R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
