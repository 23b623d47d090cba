//! Taking back the space of what no checkpoint needs, while others write and read.
//!
//! ```text
//! mark: what is needed ──► plan: which packs go ──► delete garbage ──► ( move what is needed of some ──► delete them )*
//!                                                   exclusive lock                                       exclusive lock
//! ```
//!
//! Others wait only while files are deleted, and before that what has become needed meanwhile is looked at again.

mod mark; // what is needed
mod plan; // which packs are to go
mod compact; // packs that are mostly garbage, or tiny
mod sweep; // deleting

use crate::local::{Directory, FileError, Lease, Pins, StoreLock};
use crate::store::Store;
use mark::Needed;
use plan::{Going, Plan};
use std::collections::HashSet;
use std::error::Error;
use std::path::PathBuf;

/// So much of old packs is rewritten, in bytes, and then these are deleted before it goes on: a disk that is nearly full
/// has little room for both.
const BATCH_BYTES: u64 = 32 << 20;

/// Why nothing was collected, or not everything. What checkpoints need is as it was.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// What a checkpoint needs is not known, so anything may be.
    #[error("nothing is collected while what checkpoint {checkpoint} needs cannot be known; remove it to go on")]
    Unknown {
        /// Which checkpoint.
        checkpoint: String,
        /// Why it is not known.
        source: FileError,
    },
    /// The kernel says no.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that no checkpoint, writer or reader needs.
    pub manifests: usize,
    /// Packs of which nothing was needed.
    pub packs: usize,
    /// Packs whose needed chunks were moved into others.
    pub compacted: usize,
    /// What dead writers left.
    pub dead_writers: usize,
    /// By how much the packs are smaller, in bytes.
    pub freed_bytes: u64,
    /// Packs that are kept because they are damaged, and so what is in them is not known.
    pub damaged: Vec<PathBuf>,
    /// Packs that are worth rewriting and were not rewritten, because that would have been too much at once, because
    /// somebody began to rely on them, or because of `problem`.
    pub not_compacted: usize,
    /// Why rewriting packs ended early: the disk is full, for one.
    pub problem: Option<String>,
}

impl Store {
    /// Deletes what no checkpoint needs and no living writer or reader relies on. Safe at any time: others may write and
    /// read meanwhile. They wait for it only while it deletes, at moments when they begin, find a pack for the first time,
    /// finish one, or publish.
    ///
    /// Packs of which less than half is needed are rewritten, so a store is at most about twice as large as what it
    /// holds. Dying in the middle of it loses nothing.
    pub fn collect(&self) -> Result<Collected, GcError> {
        self.collect_within(u64::MAX)
    }

    /// The same, but of packs that are to be rewritten no more are read than have so many bytes together.
    pub fn collect_within(&self, rewrite_bytes: u64) -> Result<Collected, GcError> {
        let directory = &self.inner.directory;
        let _collector = StoreLock::collector(directory)?;
        let (mut needed, mut collected) = (Needed::default(), Collected::default());
        let pins = Pins::read(directory)?;
        needed.follow(directory, &pins)?;
        let mut plan = Plan::make(directory, &pins, &needed)?;
        collected.damaged = std::mem::take(&mut plan.damaged);
        sweep::dead_writers(directory, &mut needed, &mut collected)?;
        sweep::manifests(directory, &mut needed, &mut collected)?;
        directory.sweep_working_sets()?;
        let garbage: Vec<&Going> = plan.garbage.iter().collect();
        (collected.packs, collected.freed_bytes) = sweep::packs(directory, &mut needed, &garbage, &plan.elsewhere)?;
        rewrite(directory, &mut needed, plan, rewrite_bytes, &mut collected)?;
        Ok(collected)
    }
}

/// Rewrites wasteful packs, some at a time.
fn rewrite(
    directory: &Directory,
    needed: &mut Needed,
    plan: Plan,
    mut rewrite_bytes: u64,
    collected: &mut Collected,
) -> Result<(), GcError> {
    let Plan { wasteful, mut elsewhere, .. } = plan;
    collected.not_compacted = wasteful.len();
    let mut rest = &wasteful[..];
    while !rest.is_empty() && collected.problem.is_none() {
        let count = fitting(rest, BATCH_BYTES).min(fitting(rest, rewrite_bytes));
        let (batch, after) = rest.split_at(count);
        rest = after;
        rewrite_bytes -= batch.iter().map(|pack| pack.file_len).sum::<u64>();
        if batch.is_empty() {
            break;
        }
        rewrite_batch(directory, needed, batch, &mut elsewhere, collected)?;
    }
    Ok(())
}

fn rewrite_batch(
    directory: &Directory,
    needed: &mut Needed,
    batch: &[Going],
    elsewhere: &mut HashSet<crate::id::ChunkId>,
    collected: &mut Collected,
) -> Result<(), GcError> {
    let lease = Lease::take(directory);
    let moved = match lease.and_then(|lease| Ok((compact::compact(directory, &lease, batch)?, lease))) {
        Ok(moved) => moved,
        Err(error) => {
            collected.problem = Some(told(&error));
            return Ok(());
        }
    };
    // The new packs stay until the old ones are gone.
    let (moved, _lease) = moved;
    elsewhere.extend(&moved.chunks);
    collected.damaged.extend(moved.damaged.iter().map(|id| directory.pack(*id)));
    let goes = |pack: &&Going| !moved.damaged.contains(&pack.id) && !moved.packs.contains(&pack.id);
    let old: Vec<&Going> = batch.iter().filter(goes).collect();
    let (count, bytes) = sweep::packs(directory, needed, &old, elsewhere)?;
    collected.compacted += count;
    collected.not_compacted -= count + (batch.len() - old.len());
    collected.freed_bytes = (collected.freed_bytes + bytes).saturating_sub(moved.bytes);
    Ok(())
}

/// How many of these packs, from the first one on, have so many bytes together at most.
fn fitting(packs: &[Going], bytes: u64) -> usize {
    let mut sum = 0u64;
    packs
        .iter()
        .take_while(|pack| {
            sum = sum.saturating_add(pack.file_len);
            sum <= bytes
        })
        .count()
}

/// An error with its cause.
fn told(error: &FileError) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
