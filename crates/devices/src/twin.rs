//! The twin page: how a guest learns, without asking anybody, that it has been forked.
//!
//! ```text
//! offset 0         8            16       24      32        64        4096
//!        | PANDO1  | generation | forks  | 0     | seed    | 0 …      |
//! ```
//!
//! All numbers are little-endian. `generation` and `forks` are what a program polls to learn that it must take a new
//! identity; `seed` differs between all twins, for programs that reseed themselves. The page is read-only; every access
//! of any width and alignment is answered.

use serde::{Deserialize, Serialize};

/// How much of the guest's address space the page takes, in bytes.
pub const TWIN_PAGE_BYTES: u64 = 4096;

/// What the page begins with.
pub const MAGIC: [u8; 8] = *b"PANDO1\0\0";

const GENERATION_AT: usize = MAGIC.len();
const FORKS_AT: usize = GENERATION_AT + size_of::<u64>();
const SEED_AT: usize = 32;
const SEED_END: usize = SEED_AT + 32;

const _: () = assert!(FORKS_AT + size_of::<u64>() <= SEED_AT, "the numbers end before the seed");

/// What one guest may know about being a twin.
#[derive(Clone, PartialEq, Eq)]
pub struct TwinPage {
    /// Counts the forks along this VM's line, from its boot on: 0 in a VM that was booted.
    pub generation: u64,
    /// Counts the forks that this VM was the parent of.
    pub forks: u64,
    /// Random, and different in every VM.
    pub seed: [u8; 32],
}

/// What is saved of a [`TwinPage`]: not the seed, since a twin must get its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinState {
    /// See [`TwinPage::generation`].
    pub generation: u64,
    /// See [`TwinPage::forks`].
    pub forks: u64,
}

impl TwinPage {
    /// What is worth saving. Every value of it is a good one.
    pub fn state(&self) -> TwinState {
        TwinState { generation: self.generation, forks: self.forks }
    }

    /// The page of a VM that was saved, with a seed of its own.
    pub fn restore(state: TwinState, seed: [u8; 32]) -> Self {
        Self { generation: state.generation, forks: state.forks, seed }
    }

    /// The guest reads `data.len()` bytes at `offset`. What lies beyond the page reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let head = self.head();
        for (index, byte) in (0_u64..).zip(data) {
            *byte = offset
                .checked_add(index)
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| head.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    fn head(&self) -> [u8; SEED_END] {
        let mut head = [0; SEED_END];
        head[..GENERATION_AT].copy_from_slice(&MAGIC);
        head[GENERATION_AT..FORKS_AT].copy_from_slice(&self.generation.to_le_bytes());
        head[FORKS_AT..FORKS_AT + 8].copy_from_slice(&self.forks.to_le_bytes());
        head[SEED_AT..].copy_from_slice(&self.seed);
        head
    }
}

/// The seed is a secret of the guest's, so it is not printed.
impl std::fmt::Debug for TwinPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TwinPage").field("generation", &self.generation).field("forks", &self.forks).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::device_contract;

    fn page() -> TwinPage {
        TwinPage { generation: 0x0102_0304_0506_0708, forks: 9, seed: std::array::from_fn(|index| index as u8 + 100) }
    }

    fn read<const N: usize>(offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        page().read(offset, &mut data);
        data
    }

    device_contract!(twin, new: page(), change: |page: &mut TwinPage| page.forks += 1,
        restore: |state| TwinPage::restore(state, [7; 32]));

    #[test]
    fn the_page_is_as_drawn() {
        assert_eq!(&read::<8>(0), b"PANDO1\0\0");
        assert_eq!(u64::from_le_bytes(read(8)), 0x0102_0304_0506_0708);
        assert_eq!(u64::from_le_bytes(read(16)), 9);
        assert_eq!(read::<8>(24), [0; 8]);
        assert_eq!(read::<32>(32), page().seed);
        assert_eq!(read::<64>(64), [0; 64]);
        assert_eq!(read::<2>(4095), [0; 2]);
    }

    #[test]
    fn any_width_and_alignment_is_answered() {
        assert_eq!(&read::<3>(1), b"AND");
        assert_eq!(read::<1>(8), [8]);
        assert_eq!(read::<4>(62), [130, 131, 0, 0]);
        assert_eq!(read::<8>(u64::MAX - 3), [0; 8]);
        page().read(0, &mut []);
    }

    #[test]
    fn a_twin_keeps_the_count_and_not_the_seed() {
        let twin = TwinPage::restore(page().state(), [1; 32]);
        assert_eq!((twin.generation, twin.forks, twin.seed), (page().generation, 9, [1; 32]));
        assert!(!format!("{:?}", page()).contains("100"));
    }
}
