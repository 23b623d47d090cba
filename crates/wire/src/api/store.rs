//! What is stored, and how far work on it is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Files that are done.
    pub done: u64,
    /// Files that there are, of at most 16 MiB each; 0 before that is known.
    pub files: u64,
}

/// What was taken back of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collected {
    /// By how much the store is smaller, in bytes.
    pub freed_bytes: u64,
    /// Layers that no checkpoint needs.
    pub manifests: u64,
    /// Packs of which nothing was needed.
    pub packs: u64,
    /// Packs whose needed pages were moved into others.
    pub compacted: u64,
    /// Packs that are kept because they are damaged, and so what is in them is not known.
    pub damaged: Vec<String>,
    /// Why it ended early: the disk is full, for one.
    pub problem: Option<String>,
}

/// What was read of the store, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// How many checkpoints there are.
    pub checkpoints: u64,
    /// How much was read, in bytes.
    pub bytes: u64,
    /// Every file that is not what was written.
    pub damage: Vec<Damage>,
}

/// A file of the store that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// Which file.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// The checkpoints, by name, that cannot be used in full because of it.
    pub affected: Vec<String>,
}
