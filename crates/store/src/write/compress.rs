//! A chunk becomes part of a pack, unless it is in one already.

use super::error::WriteError;
use super::layer::{Collected, Piece};
use super::progress::Ticket;
use super::shared::{Full, Shared, lock};
use crate::format::Span;
use crate::id::ChunkId;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use zstd::bulk::Compressor;

/// Some chunks of a layer.
pub(super) struct Job {
    /// The chunks, one after the other.
    pub(super) bytes: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
    pub(super) layer: Arc<Collected>,
    pub(super) _ticket: Ticket,
}

/// Works until no more jobs can come.
pub(super) fn work(shared: &Shared, jobs: &Mutex<Receiver<Job>>, packs: &SyncSender<Full>) {
    let mut compressor = match Compressor::new(shared.tuning.level) {
        Ok(compressor) => Some(compressor),
        Err(error) => {
            shared.fail(WriteError::Compress(error));
            None
        }
    };
    let mut scratch = Vec::new();
    loop {
        let job = lock(jobs).recv();
        let Ok(Job { bytes, pieces, layer, _ticket }) = job else { return };
        if let Some(compressor) = &mut compressor
            && !shared.has_failed()
        {
            match spans(shared, compressor, &mut scratch, &bytes, &pieces, packs) {
                Ok(spans) => lock(&layer.spans).extend(spans),
                Err(error) => shared.fail(error),
            }
        }
        shared.give_back(bytes);
    }
}

fn spans(
    shared: &Shared,
    compressor: &mut Compressor<'_>,
    scratch: &mut Vec<u8>,
    mut bytes: &[u8],
    pieces: &[Piece],
    packs: &SyncSender<Full>,
) -> Result<Vec<Span>, WriteError> {
    let mut spans = Vec::with_capacity(pieces.len());
    for &Piece { index, held, data } in pieces {
        let mut span = Span { index, held, data, chunk: None };
        let (chunk, rest) = bytes.split_at(span.raw_len());
        bytes = rest;
        if !chunk.is_empty() {
            let id = ChunkId::of(chunk);
            shared.hashed_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            span.chunk = Some(id);
            if shared.claim(id) && !is_stored(shared, id, chunk.len())? {
                store(shared, compressor, scratch, id, chunk, packs)?;
            }
        }
        spans.push(span);
    }
    Ok(spans)
}

/// Whether the chunk is in the store, and stays there while this writer lives.
fn is_stored(shared: &Shared, id: ChunkId, raw_len: usize) -> Result<bool, WriteError> {
    // Looked up first, because most chunks are new, and for those nothing is to be read or locked.
    let is_known = shared.store.catalog.find(&id).is_some_and(|place| place.entry.raw as usize == raw_len);
    Ok(is_known && shared.store.pin_chunk(&shared.lease, &id)?.is_some())
}

fn store(
    shared: &Shared,
    compressor: &mut Compressor<'_>,
    scratch: &mut Vec<u8>,
    id: ChunkId,
    chunk: &[u8],
    packs: &SyncSender<Full>,
) -> Result<(), WriteError> {
    scratch.clear();
    scratch.reserve(zstd::zstd_safe::compress_bound(chunk.len()));
    let len = compressor.compress_to_buffer(chunk, scratch).map_err(WriteError::Compress)?;
    let stored = if len < chunk.len() { &scratch[..len] } else { chunk };
    shared.append(id, stored, chunk.len(), packs);
    Ok(())
}
