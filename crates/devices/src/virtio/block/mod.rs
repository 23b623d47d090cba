//! A disk (virtio 1.2, section 5.2).
//!
//! Limits: one queue; no discard, no zeroing, no zones; a request moves at most [`MAX_REQUEST_BYTES`], which a driver
//! that heeds the limits it is told cannot exceed. Requests are done one after the other, in the call that finds them,
//! so between two calls of `process` there is never one in flight: nothing about them needs saving.

mod backing; // where the sectors are
mod device; // queue in, sectors out
mod request; // what a driver asks for

pub use backing::Backing;
pub use device::{Access, Block, BlockError};

/// The unit of a request, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// The most that one request moves, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The most buffers of one request.
const MAX_SEGMENTS: u32 = 128;

/// The largest buffer of a request, in bytes.
const MAX_SEGMENT_BYTES: u32 = 32 << 10;

const _: () = assert!(
    MAX_SEGMENTS as usize * MAX_SEGMENT_BYTES as usize == MAX_REQUEST_BYTES,
    "a driver within its limits never asks for too much"
);

#[cfg(test)]
mod tests;
