//! A tree and a spool become an ext4 file system.

use std::collections::BTreeMap;
use std::io;

use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, ROOT, RegionSink};

use crate::import::spool::{Content, Spool};
use crate::import::store::{BLOCK_BYTES, NewImage};
use crate::import::tree::{EPOCH, Node, NodeId, Tree, What};
use crate::import::{ImportError, write_error};

/// How much room the guest has for its own files. It costs nothing until it is used: the image is sparse, and the file
/// system cannot be made larger later.
const FREE_BYTES: u64 = 8 << 30;
/// Images are a multiple of one ext4 block group.
const GROUP_BYTES: u64 = 128 << 20;
/// ext4's usual ratio, which suits the free part.
const BYTES_PER_INODE: u64 = 16384;
/// Every ext4 file system has one of its own, so an archive's is left out.
const LOST_AND_FOUND: &str = "lost+found";

/// Writes the file system to `image`.
pub(super) fn write(tree: &Tree, spool: &Spool, uuid: [u8; 16], image: &mut NewImage) -> Result<(), ImportError> {
    let (nodes, blocks) = measure(tree);
    // A tenth more than the contents, for extents, directories and tables.
    let content_bytes = blocks * BLOCK_BYTES as u64;
    let size_bytes = (content_bytes + content_bytes / 10 + FREE_BYTES).next_multiple_of(GROUP_BYTES);
    let inodes = nodes + size_bytes / BYTES_PER_INODE;
    let mut options = Options::new(size_bytes, uuid, EPOCH);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    options.reserved_percent = 0; // There is nobody to keep space for: everyone in a guest is root.

    let layout_error = |source| ImportError::Layout { source };
    let mut builder = FsBuilder::new(options).map_err(layout_error)?;
    let files = declare(tree, &mut builder).map_err(layout_error)?;
    let layout = builder.seal().map_err(layout_error)?;

    image.set_len(layout.image_len())?;
    let path = image.path().to_owned();
    let explain = |error| match error {
        mkext4::Error::Io(source) => write_error(&path, source),
        source => ImportError::Layout { source },
    };
    let mut writer = layout.writer(Sink(image)).map_err(explain)?;
    for (handle, content) in files {
        writer.fill(handle, &mut spool.read(content)).map_err(explain)?;
    }
    writer.finish().map_err(explain)?;
    Ok(())
}

/// How many nodes there are, and how many blocks their contents take.
fn measure(tree: &Tree) -> (u64, u64) {
    let (mut nodes, mut blocks) = (1, 1);
    for (_, _, id, is_new) in walk(tree) {
        if !is_new {
            continue;
        }
        nodes += 1;
        blocks += match &tree.node(id).what {
            // At least one, so that there are inodes enough for any number of empty files: a group has one per block.
            What::File(content) => content.data_bytes().div_ceil(BLOCK_BYTES as u64).max(1),
            // An entry takes at most 264 bytes, and blocks may be half full.
            What::Directory(children) => 1 + children.len() as u64 / 7,
            What::Symlink(_) | What::Special(_) => 1,
        } + u64::from(!tree.node(id).attributes.is_empty());
    }
    (nodes, blocks)
}

/// Tells `builder` of every name, and gives the files whose content is then wanted, in the order of their blocks.
fn declare<'a>(tree: &'a Tree, builder: &mut FsBuilder) -> mkext4::Result<Vec<(InodeHandle, &'a Content)>> {
    let mut handles = BTreeMap::from([(Tree::ROOT, ROOT)]);
    let mut files = Vec::new();
    builder.set_meta(ROOT, tree.node(Tree::ROOT).meta)?;
    set_attributes(builder, ROOT, tree.node(Tree::ROOT))?;
    for (parent, name, id, is_new) in walk(tree) {
        let parent = handles[&parent]; // A directory is walked before what is in it.
        if !is_new {
            builder.hardlink(parent, name, handles[&id])?;
            continue;
        }
        let node = tree.node(id);
        let handle = match &node.what {
            What::Directory(_) => builder.mkdir(parent, name, node.meta)?,
            What::Symlink(target) => builder.symlink(parent, name, target, node.meta)?,
            What::Special(kind) => builder.mknod(parent, name, node.meta, *kind)?,
            What::File(content) => {
                let handle = match &content.segments {
                    Some(segments) => builder.file_sparse(parent, name, node.meta, segments)?,
                    None => builder.file(parent, name, node.meta, content.len_bytes)?,
                };
                if content.data_bytes() != 0 {
                    files.push((handle, content));
                }
                handle
            }
        };
        set_attributes(builder, handle, node)?;
        handles.insert(id, handle);
    }
    Ok(files)
}

fn set_attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> mkext4::Result<()> {
    node.attributes.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

/// Every name below the root: the directory it is in, the name, its node, and whether it is that node's first name. A
/// directory comes before what is in it. Depth costs no stack: an archive may nest as deep as it likes.
fn walk(tree: &Tree) -> impl Iterator<Item = (NodeId, &str, NodeId, bool)> {
    let mut seen = std::collections::BTreeSet::new();
    let mut directories = vec![Tree::ROOT];
    let mut names: Vec<(NodeId, &str, NodeId)> = Vec::new();
    std::iter::from_fn(move || {
        loop {
            while names.is_empty() {
                let directory = directories.pop()?;
                if let What::Directory(children) = &tree.node(directory).what {
                    names.extend(children.iter().rev().map(|(name, id)| (directory, name.as_str(), *id)));
                }
            }
            let (parent, name, id) = names.pop()?;
            if parent == Tree::ROOT && name == LOST_AND_FOUND {
                continue;
            }
            if let What::Directory(_) = tree.node(id).what {
                directories.push(id);
            }
            return Some((parent, name, id, seen.insert(id)));
        }
    })
}

/// Where mkext4 writes. The image was made of zeroes already.
struct Sink<'a>(&'a mut NewImage);

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_sparse(offset, bytes)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
