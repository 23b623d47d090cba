//! One disk becomes two.
//!
//! The parent draws a freeze line in its own layer and goes on above it, in the same file. The child reads the parent's
//! layer below that line and writes to a layer of its own.

use std::mem;

use crate::disk::{Base, Disk, Inherited, Own, Pending};
use crate::files::Files;
use crate::journal::{Ancestor, Header, Journal, LayerId};
use crate::map::BlockMap;
use crate::open::{self, OpenError};
use crate::{BLOCK_BYTES, MAX_LAYERS};

/// What a child process has of its parent's disk: everything but files. It has a copy of the map because `fork(2)` made
/// one.
///
/// A seed process keeps it across many forks, and each child [branches](Disk::branch) from its own copy.
pub struct Sealed {
    pub(crate) len_bytes: u64,
    /// Of the parent.
    pub(crate) life: LayerId,
    pub(crate) base_len_bytes: u64,
    /// The layers of the child, oldest first: those that the parent inherited, then the parent's own.
    pub(crate) layers: Vec<SealedLayer>,
    pub(crate) map: BlockMap,
    pub(crate) pending: Pending,
    pub(crate) broken: bool,
}

/// A layer as a child inherits it.
pub(crate) struct SealedLayer {
    pub(crate) layer: Ancestor,
    /// How many slots the map may name in it; its data file is at least that long.
    pub(crate) slots: u64,
    pub(crate) unsynced: bool,
}

impl Disk {
    /// Freezes everything that is on the disk, for children to read. The parent calls it in the pause, right before
    /// `fork(2)`, with no request in flight; it costs nothing.
    pub fn seal(&mut self) {
        self.own.frozen = self.own.next_slot;
    }

    /// Has everything in the own layer be overwritten in place again, so that a disk that is recovered often does not grow by
    /// what it overwrites each time. Only for a disk whose own layer nobody else reads: no descendant, no seed.
    pub fn thaw(&mut self) {
        self.own.frozen = 0;
    }

    /// What a child keeps of this disk. Called in the forked process, and nowhere else, after the parent's
    /// [`Disk::seal`].
    ///
    /// The files are forgotten, not closed: the child has let go of its parent's descriptors by other means, and their
    /// numbers may be its own files' by now.
    ///
    /// # Panics
    ///
    /// Where the disk was written to since the seal: the child would read what its parent overwrites.
    #[must_use]
    pub fn into_sealed(self) -> Sealed {
        assert_eq!(self.own.frozen, self.own.next_slot, "a disk is sealed before it is forked");
        let Self { len_bytes, life, base, inherited, own, journal, map, pending, broken, dropped_journal_bytes: _ } =
            self;
        let own_layer = SealedLayer { layer: journal.as_ancestor(), slots: own.next_slot, unsynced: own.unsynced };
        let base_len_bytes = base.len_bytes;
        mem::forget((base.file, own.data, journal.file));
        let mut layers = Vec::with_capacity(inherited.len() + 2); // With room for what the child's child will add.
        for Inherited { data, layer, slots, unsynced } in inherited {
            mem::forget(data);
            layers.push(SealedLayer { layer, slots, unsynced });
        }
        layers.push(own_layer);
        Sealed { len_bytes, life, base_len_bytes, layers, map, pending, broken }
    }

    /// The child's disk: all that `sealed` has, and an empty layer of its own in `files.data` and `files.journal`.
    ///
    /// `files.inherited` are the parent's inherited layers and then the parent's own. The journal's header is written
    /// and is durable with the first [`Disk::flush`]: until then a power cut (not a killed monitor) loses the child.
    ///
    /// # Errors
    ///
    /// Fails where the tree is [too deep](MAX_LAYERS), a file is not the one that the parent had, the new layer is not
    /// empty, or its journal cannot be written.
    pub fn branch(sealed: Sealed, files: Files) -> Result<Self, OpenError> {
        let Sealed { len_bytes, life: _, base_len_bytes, layers, map, pending, broken } = sealed;
        if MAX_LAYERS < layers.len() + 1 {
            return Err(OpenError::TooDeep { layers: layers.len() + 1 });
        }
        open::check_inherited(layers.len(), files.inherited.len())?;
        open::check_empty("the new disk layer", &files.data)?;
        open::check_empty("the new disk map journal", &files.journal)?;
        let found = open::length("the disk's base", &files.base)?;
        if found != base_len_bytes {
            return Err(OpenError::BaseChanged { found, recorded: base_len_bytes });
        }

        let mut inherited = Vec::with_capacity(layers.len());
        for (ordinal, (data, sealed)) in files.inherited.into_iter().zip(layers).enumerate() {
            let SealedLayer { layer, slots, unsynced } = sealed;
            let found_bytes = open::length("an inherited disk layer", &data)?;
            if found_bytes < slots * BLOCK_BYTES {
                return Err(OpenError::ShortLayer { ordinal, found_bytes, wanted_bytes: slots * BLOCK_BYTES });
            }
            inherited.push(Inherited { data, layer, slots, unsynced });
        }
        let ancestors = inherited.iter().map(|layer| layer.layer).collect();
        let header = Header { id: open::new_layer_id()?, len_bytes, base_len_bytes, ancestors };
        let life = header.id; // Nobody else can have had it.
        let journal = Journal::create(files.journal, &header)
            .map_err(|source| OpenError::Write { what: "the new disk map journal", source })?;
        Ok(Self {
            len_bytes,
            life,
            base: Base { file: files.base, len_bytes: base_len_bytes },
            inherited,
            own: Own { data: files.data, next_slot: 0, frozen: 0, unsynced: false },
            journal,
            map,
            pending,
            broken,
            dropped_journal_bytes: 0,
        })
    }

    /// What [`Disk::into_sealed`] gives in a forked process, in this one.
    #[cfg(test)]
    pub(crate) fn sealed_copy(&self) -> Sealed {
        assert_eq!(self.own.frozen, self.own.next_slot, "a disk is sealed before it is forked");
        let mut layers: Vec<_> = (self.inherited.iter())
            .map(|layer| SealedLayer { layer: layer.layer, slots: layer.slots, unsynced: layer.unsynced })
            .collect();
        layers.push(SealedLayer {
            layer: self.journal.as_ancestor(),
            slots: self.own.next_slot,
            unsynced: self.own.unsynced,
        });
        Sealed {
            len_bytes: self.len_bytes,
            life: self.life,
            base_len_bytes: self.base.len_bytes,
            layers,
            map: self.map.copy(),
            pending: Pending(self.pending.0.clone()),
            broken: self.broken,
        }
    }
}
