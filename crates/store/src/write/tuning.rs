//! Sizes and levels, chosen on the measurements in `docs/snapshot-format.md`.

use crate::format::MAX_CHUNK_PAGES;

/// How checkpoints are written. Whatever it says, every reader reads them; but chunks are found again only by writers
/// of the same `chunk_pages`.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Pages per chunk, 1 to [`MAX_CHUNK_PAGES`].
    pub chunk_pages: u32,
    /// The level of zstd; negative ones are quicker.
    pub level: i32,
    /// How many threads hash and compress, at least 1.
    pub threads: usize,
    /// A pack is finished when it is this long, in bytes: 1 to 4 MiB, as an object in a bucket should be.
    pub pack_bytes: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { chunk_pages: 4, level: 1, threads: 2, pack_bytes: 2 << 20 }
    }
}

impl Tuning {
    /// The nearest that works.
    pub(super) fn clamped(self) -> Self {
        Self {
            chunk_pages: self.chunk_pages.clamp(1, MAX_CHUNK_PAGES),
            level: self.level.clamp(*zstd::compression_level_range().start(), *zstd::compression_level_range().end()),
            threads: self.threads.max(1),
            pack_bytes: self.pack_bytes.clamp(4 << 10, 4 << 20),
        }
    }
}
