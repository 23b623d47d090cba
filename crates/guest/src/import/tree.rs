//! A file system's names and nodes, in memory, before it has a layout.

use std::collections::{BTreeMap, VecDeque};

use mkext4::{Meta, SpecialKind};

use crate::import::spool::Content;

/// What the file system's own inodes, and directories without an entry, have as their time: 1 January 2024, so that one
/// input always gives one image.
pub(super) const EPOCH: i64 = 1_704_067_200;

/// How many symbolic links one path may lead through, as in Linux.
const MAX_SYMLINKS: u32 = 40;
const MAX_NAME_BYTES: usize = 255;
const MAX_TARGET_BYTES: usize = 4095;

/// Why an entry of an archive cannot be in the file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name is not text.
    #[error("its name is not UTF-8")]
    NotText,
    /// A name is longer than a directory can hold.
    #[error("a part of its name has more than {MAX_NAME_BYTES} bytes")]
    NameTooLong,
    /// A name has a byte that ends it.
    #[error("its name has a NUL in it")]
    Nul,
    /// The target of a symbolic link is empty or too long.
    #[error("its target must have 1 to {MAX_TARGET_BYTES} bytes and no NUL")]
    Target,
    /// A hard link to nothing.
    #[error("it is a hard link to {target}, which is not there")]
    NoTarget {
        /// What it should be a link to.
        target: String,
    },
    /// A hard link to a directory.
    #[error("it is a hard link to {target}, which is a directory")]
    DirectoryTarget {
        /// The directory.
        target: String,
    },
    /// Symbolic links lead in a circle.
    #[error("its path leads through more than {MAX_SYMLINKS} symbolic links")]
    Loop,
    /// The root would not be a directory.
    #[error("the root must be a directory")]
    Root,
    /// An owner, device or time is out of range.
    #[error("its {field} cannot be stored: {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

/// A tree of nodes. Removed nodes stay in the list without a name.
pub(super) struct Tree {
    nodes: Vec<Node>,
}

/// Which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(usize);

pub(super) struct Node {
    pub(super) what: What,
    pub(super) meta: Meta,
    pub(super) attributes: Vec<(String, Vec<u8>)>,
}

/// What a node is.
pub(super) enum What {
    Directory(BTreeMap<String, NodeId>),
    File(Content),
    Symlink(String),
    Special(SpecialKind),
}

impl Tree {
    pub(super) const ROOT: NodeId = NodeId(0);

    /// A tree with an empty root.
    pub(super) fn new() -> Self {
        Self { nodes: vec![empty_directory(0o755)] }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Puts `node` at `path`. It replaces what is there, except that a directory takes over another's children.
    pub(super) fn put(&mut self, path: &str, node: Node) -> Result<(), TreeError> {
        let Some((parent, name)) = self.parent(path)? else {
            return self.put_root(node);
        };
        let old = self.children(parent).get(&name).copied();
        if let Some(old) = old
            && let (What::Directory(_), What::Directory(_)) = (&node.what, &self.node(old).what)
        {
            let Node { meta, attributes, .. } = node;
            (self.nodes[old.0].meta, self.nodes[old.0].attributes) = (meta, attributes);
            return Ok(());
        }
        let id = self.add(node);
        self.children(parent).insert(name, id);
        Ok(())
    }

    /// Gives the node at `target` another name.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), TreeError> {
        let no_target = || TreeError::NoTarget { target: target.to_owned() };
        let Some((target_parent, target_name)) = self.parent(target)? else {
            return Err(TreeError::DirectoryTarget { target: target.to_owned() });
        };
        let id = self.children(target_parent).get(&target_name).copied().ok_or_else(no_target)?;
        if let What::Directory(_) = self.node(id).what {
            return Err(TreeError::DirectoryTarget { target: target.to_owned() });
        }
        let (parent, name) = self.parent(path)?.ok_or(TreeError::Root)?;
        self.children(parent).insert(name, id);
        Ok(())
    }

    /// Adds an empty directory of root's to the root, unless there is something of that name.
    pub(super) fn ensure_directory(&mut self, name: &str, mode: u16) {
        if !self.children(Self::ROOT).contains_key(name) {
            let id = self.add(empty_directory(mode));
            self.children(Self::ROOT).insert(name.to_owned(), id);
        }
    }

    fn put_root(&mut self, node: Node) -> Result<(), TreeError> {
        let Node { what: What::Directory(_), meta, attributes } = node else {
            return Err(TreeError::Root);
        };
        (self.nodes[0].meta, self.nodes[0].attributes) = (meta, attributes);
        Ok(())
    }

    /// The directory that `path` lies in, and its name in there; `None` for the root.
    ///
    /// Directories on the way that are missing are made. Symbolic links on the way are followed inside the tree, as an
    /// extraction into an empty root would follow them.
    fn parent(&mut self, path: &str) -> Result<Option<(NodeId, String)>, TreeError> {
        let mut parts: VecDeque<String> = normalise(path)?.into();
        let Some(name) = parts.pop_back() else {
            return Ok(None);
        };
        let mut way = Vec::new(); // From the root, which is not in it.
        let mut links = 0;
        while let Some(part) = parts.pop_front() {
            if part == ".." {
                way.pop();
                continue;
            }
            let here = way.last().copied().unwrap_or(Self::ROOT);
            let next = match self.children(here).get(&part).copied() {
                Some(id) => match &self.node(id).what {
                    What::Directory(_) => id,
                    What::Symlink(target) => {
                        links += 1;
                        if MAX_SYMLINKS < links {
                            return Err(TreeError::Loop);
                        }
                        let target = target.clone();
                        if target.starts_with('/') {
                            way.clear();
                        }
                        for part in target.split('/').rev().filter(|part| !part.is_empty() && *part != ".") {
                            check_name(part)?;
                            parts.push_front(part.to_owned());
                        }
                        continue;
                    }
                    // A directory is needed here, so a later entry replaces an earlier one.
                    What::File(_) | What::Special(_) => self.new_directory(here, part),
                },
                None => self.new_directory(here, part),
            };
            way.push(next);
        }
        Ok(Some((way.last().copied().unwrap_or(Self::ROOT), name)))
    }

    fn new_directory(&mut self, parent: NodeId, name: String) -> NodeId {
        let id = self.add(empty_directory(0o755));
        self.children(parent).insert(name, id);
        id
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// The children of a node that is known to be a directory.
    fn children(&mut self, id: NodeId) -> &mut BTreeMap<String, NodeId> {
        match &mut self.nodes[id.0].what {
            What::Directory(children) => children,
            What::File(_) | What::Symlink(_) | What::Special(_) => unreachable!("only directories are walked into"),
        }
    }
}

/// A target that a symbolic link can have.
pub(super) fn symlink_target(bytes: &[u8]) -> Result<String, TreeError> {
    let is_possible = (1..=MAX_TARGET_BYTES).contains(&bytes.len()) && !bytes.contains(&0);
    if !is_possible {
        return Err(TreeError::Target);
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| TreeError::NotText)
}

/// The parts of a path, taken from the root, which `..` does not leave.
fn normalise(path: &str) -> Result<Vec<String>, TreeError> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => (), // Means where we are.
            ".." => _ = parts.pop(),
            _ => {
                check_name(part)?;
                parts.push(part.to_owned());
            }
        }
    }
    Ok(parts)
}

fn check_name(part: &str) -> Result<(), TreeError> {
    if part.contains('\0') {
        return Err(TreeError::Nul);
    }
    if MAX_NAME_BYTES < part.len() {
        return Err(TreeError::NameTooLong);
    }
    Ok(())
}

fn empty_directory(mode: u16) -> Node {
    Node { what: What::Directory(BTreeMap::new()), meta: Meta::new(mode, 0, 0, (EPOCH, 0)), attributes: Vec::new() }
}
