//! Entry points for fuzzers: whatever a file says, reading it fails or succeeds and does nothing else.

use crate::format::{
    FileKind, HEADER_BYTES, Manifest, PackIndex, StoredCheckpoint, read_index, read_working_set, seal,
    write_working_set,
};
use crate::id::ManifestId;
use crate::read::decompress;
use zstd::bulk::Decompressor;

/// A manifest that is the input. One that is read is written again as the same bytes.
pub fn fuzz_manifest(data: &[u8]) {
    read_manifest(data);
    read_manifest(&sealed(FileKind::Manifest, data));
}

/// A pack that is the input, its chunks included.
pub fn fuzz_pack(data: &[u8]) {
    read_pack(data);
    let mut file = sealed(FileKind::Pack, data);
    crate::format::make_index_checksum_right(&mut file);
    read_pack(&file);
}

/// A checkpoint that is the input. One that is read is written again as the same bytes.
pub fn fuzz_checkpoint(data: &[u8]) {
    read_checkpoint(data);
    read_checkpoint(&sealed(FileKind::Checkpoint, data));
}

/// A working set that is the input. One that is read is written again as the same bytes.
pub fn fuzz_working_set(data: &[u8]) {
    let file = sealed(FileKind::WorkingSet, data);
    for file in [data, &file] {
        // Whatever layer it says it is of.
        let Some(layer) = file.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk()).map(|id| ManifestId(*id)) else {
            continue;
        };
        if let Ok(runs) = read_working_set(layer, file) {
            assert!(write_working_set(layer, &runs).is_some_and(|written| written == file));
        }
    }
}

/// A file with this payload, and a header and checksum that are right: hardly any input would get behind those.
fn sealed(kind: FileKind, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; HEADER_BYTES];
    file.extend_from_slice(payload);
    seal(kind, file)
}

fn read_manifest(file: &[u8]) {
    if let Ok(manifest) = Manifest::decode(file) {
        assert!(manifest.write().1 == file, "there is one way to write a manifest down");
        for page in manifest.spans().iter().filter_map(|span| span.index.checked_mul(manifest.chunk_pages().into())) {
            assert!(manifest.find(page).is_some());
        }
        assert!(manifest.find(manifest.pages()).is_none());
    }
}

fn read_pack(file: &[u8]) {
    let Ok(PackIndex { entries, file_len }) = read_index(file) else { return };
    if file_len != file.len() as u64 {
        return;
    }
    let Ok(mut decompressor) = Decompressor::new() else { return };
    for entry in &entries {
        let (_, spare) = decompress(decompressor, entry, file[entry.range()].to_vec());
        decompressor = spare;
    }
}

fn read_checkpoint(file: &[u8]) {
    if let Ok(stored) = StoredCheckpoint::read(file) {
        assert!(stored.write().is_some_and(|written| written == file), "there is one way to write a checkpoint down");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_entry_points_take_anything() {
        let inputs = [&b""[..], b"PANDOSTO", &[0; 24], &[0; 200], &[0xff; 200]];
        for input in inputs {
            super::fuzz_manifest(input);
            super::fuzz_pack(input);
            super::fuzz_checkpoint(input);
            super::fuzz_working_set(input);
        }
    }
}
