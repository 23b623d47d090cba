//! What every file of a store begins with: so that an old file can always say what it is.

use crc_fast::{CrcAlgorithm, Digest};

const MAGIC: [u8; 8] = *b"PANDOSTO";
/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const FORMAT_AT: usize = MAGIC.len();
const KIND_AT: usize = FORMAT_AT + size_of::<u32>();
const PAYLOAD_LEN_AT: usize = KIND_AT + size_of::<u32>();
const CHECKSUM_AT: usize = PAYLOAD_LEN_AT + size_of::<u64>();
/// The length of the header, in bytes. The payload follows.
pub const HEADER_BYTES: usize = CHECKSUM_AT + size_of::<u64>();
const _: () = assert!(HEADER_BYTES == 32, "docs/snapshot-format.md says 32");

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The mark of a store's directory.
    Store,
    /// Chunks.
    Pack,
    /// Which chunk each page of a layer is in.
    Manifest,
    /// A checkpoint.
    Checkpoint,
    /// Which pages of a layer are wanted first.
    WorkingSet,
}

impl FileKind {
    /// Its four letters in a header.
    pub const fn letters(self) -> [u8; 4] {
        match self {
            Self::Store => *b"stor",
            Self::Pack => *b"pack",
            Self::Manifest => *b"mani",
            Self::Checkpoint => *b"chkp",
            Self::WorkingSet => *b"wset",
        }
    }
}

/// Why bytes are not what a file should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin with the magic.
    #[error("it is no file of a store")]
    Magic,
    /// A later build wrote it.
    #[error("it is store format {0}, this build reads up to {FORMAT}")]
    Newer(u32),
    /// A file of a store, but of another kind.
    #[error("it is another kind of file")]
    Kind,
    /// It ends early, or goes on behind its end.
    #[error("its length is not what it says")]
    Length,
    /// The content is not what was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// The content is not what its name says.
    #[error("its content is not what it is named after")]
    Name,
    /// A field has a value that nobody writes.
    #[error("its {0} makes no sense")]
    Field(&'static str),
}

/// A header, as far as it can be believed without the payload.
pub(crate) struct Header {
    pub(crate) payload_len: u64,
    checksum: u64,
}

impl Header {
    /// Reads the header that `bytes` begin with, and refuses what is not a `kind` of a format that is known here.
    pub(crate) fn read(kind: FileKind, bytes: &[u8]) -> Result<Self, FormatError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            let is_ours = bytes.starts_with(&MAGIC);
            return Err(if is_ours { FormatError::Length } else { FormatError::Magic });
        };
        if !header.starts_with(&MAGIC) {
            return Err(FormatError::Magic);
        }
        match u32::from_le_bytes(field(header, FORMAT_AT)) {
            0 => return Err(FormatError::Field("format")),
            1..=FORMAT => (),
            newer => return Err(FormatError::Newer(newer)),
        }
        if field(header, KIND_AT) != kind.letters() {
            return Err(FormatError::Kind);
        }
        Ok(Self {
            payload_len: u64::from_le_bytes(field(header, PAYLOAD_LEN_AT)),
            checksum: u64::from_le_bytes(field(header, CHECKSUM_AT)),
        })
    }
}

/// A whole file: a header and this payload, which follows `HEADER_BYTES` that are free to be overwritten.
pub(crate) fn seal(kind: FileKind, mut file: Vec<u8>) -> Vec<u8> {
    let payload_len = (file.len() - HEADER_BYTES) as u64;
    file[..FORMAT_AT].copy_from_slice(&MAGIC);
    file[FORMAT_AT..KIND_AT].copy_from_slice(&FORMAT.to_le_bytes());
    file[KIND_AT..PAYLOAD_LEN_AT].copy_from_slice(&kind.letters());
    file[PAYLOAD_LEN_AT..CHECKSUM_AT].copy_from_slice(&payload_len.to_le_bytes());
    let checksum = checksum(&file);
    file[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    file
}

/// The payload of a whole file, after every check that does not depend on the kind.
///
/// The header is the same in every format. So one that is newer is told from one that is damaged, and only a file that is
/// as somebody wrote it is said to be newer.
pub(crate) fn unseal(kind: FileKind, file: &[u8]) -> Result<&[u8], FormatError> {
    let header = match Header::read(kind, file) {
        Err(FormatError::Newer(_)) if file[CHECKSUM_AT..HEADER_BYTES] != checksum(file).to_le_bytes() => {
            return Err(FormatError::Checksum);
        }
        read => read?,
    };
    let payload = &file[HEADER_BYTES..];
    if header.payload_len != payload.len() as u64 {
        return Err(FormatError::Length);
    }
    if header.checksum != checksum(file) {
        return Err(FormatError::Checksum);
    }
    Ok(payload)
}

/// CRC-64/NVME of all but the checksum itself.
fn checksum(file: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&file[..CHECKSUM_AT]);
    digest.update(&file[HEADER_BYTES..]);
    digest.finalize()
}

/// The bytes that the checksum of a part of a file begins with, so that a part of another file is none here.
pub(super) fn identity(header: &[u8]) -> &[u8] {
    &header[..CHECKSUM_AT]
}

/// The `N` bytes at `at`, which the callers' constants prove to be there.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES];
        file.extend_from_slice(b"payload");
        seal(FileKind::Manifest, file)
    }

    #[test]
    fn a_payload_comes_back() {
        assert_eq!(unseal(FileKind::Manifest, &file()), Ok(&b"payload"[..]));
        assert_eq!(unseal(FileKind::Pack, &file()), Err(FormatError::Kind));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let good = file();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(FileKind::Manifest, &bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(unseal(FileKind::Manifest, &good[..len]).is_err(), "cut to {len}");
        }
        assert_eq!(unseal(FileKind::Manifest, &[&good[..], b"!"].concat()), Err(FormatError::Length));
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let mut newer = file();
        newer[FORMAT_AT] = 2;
        assert_eq!(unseal(FileKind::Manifest, &newer), Err(FormatError::Checksum), "a flipped bit is no newer format");
        let checksum = checksum(&newer);
        newer[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(unseal(FileKind::Manifest, &newer), Err(FormatError::Newer(2)));
    }
}
