//! What the guest sends: a header, and after it `len` bytes.
//!
//! ```text
//! 0        8        16        20        24    28     30    32      36          40        44
//! | src_cid | dst_cid | src_port | dst_port | len | type | op | flags | buf_alloc | fwd_cnt | data …
//! ```

use super::HOST_CID;
use crate::virtio::chain::{Chain, ChainError};

/// Bytes before the data of a packet.
pub(super) const HEADER_BYTES: usize = 44;

/// The only type of socket here.
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: what the sender will do no more.
pub(super) mod shutdown {
    pub(crate) const RECEIVE: u32 = 1;
    pub(crate) const SEND: u32 = 2;
    pub(crate) const BOTH: u32 = RECEIVE | SEND;
}

/// The header of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Of the data, in bytes.
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// How much the sender can keep, in bytes.
    pub(crate) buf_alloc: u32,
    /// How much the sender has passed on so far, in bytes; it wraps.
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// The header whose bytes these are. It may say anything.
    pub(crate) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// What goes over the wire.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers it.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let (head, tail) = rest.split_at(N);
    field.copy_from_slice(head);
    *rest = tail;
    field
}

/// A packet from the guest to the host: it says who sent it, it is of a stream, and its data is there. What it is for
/// may be anything.
pub(super) struct Packet<'c, 'm> {
    pub(super) header: Header,
    chain: &'c Chain<'m>,
}

/// What is done with a packet that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It goes unanswered: there is nobody to answer.
    Drop,
    /// Its connection, or what it takes for one, is reset.
    Reset(Header),
}

impl<'c, 'm> Packet<'c, 'm> {
    /// Checks what the guest put in its transmit queue.
    pub(super) fn claim(chain: &'c Chain<'m>, guest_cid: u64) -> Result<Self, Refusal> {
        let mut bytes = [0; HEADER_BYTES];
        chain.read_at(0, &mut bytes).map_err(|_| Refusal::Drop)?;
        let header = Header::from_bytes(&bytes);
        if header.src_cid != guest_cid || header.dst_cid != HOST_CID {
            return Err(Refusal::Drop);
        }
        let data_is_there = header.len as usize <= chain.readable_len() - HEADER_BYTES;
        if header.kind != STREAM || !data_is_there {
            return Err(Refusal::Reset(header));
        }
        Ok(Self { header, chain })
    }

    /// Copies its data into `data`, which becomes as long as that.
    pub(super) fn read_data(&self, data: &mut Vec<u8>) -> Result<(), ChainError> {
        data.resize(self.header.len as usize, 0);
        self.chain.read_at(HEADER_BYTES, data)
    }
}

/// A packet for a fuzz target: on the first connection, but for what `data` says of its operation, flags, credit and
/// port, with the rest of `data` after the header.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_header(data: &[u8]) -> Vec<u8> {
    let byte = |index: usize| data.get(index).copied().unwrap_or(0);
    let rest = data.get(8..).unwrap_or(&[]);
    let header = Header {
        src_cid: 3 ^ u64::from(byte(0) >> 7),
        dst_cid: HOST_CID ^ u64::from(byte(0) >> 6 & 1),
        src_port: 1024 ^ u32::from(byte(0) >> 5 & 1),
        dst_port: (1 << 30) + u32::from(byte(0) >> 4 & 1),
        len: (rest.len() as u32).wrapping_add(u32::from(byte(1)) / 192),
        kind: STREAM,
        op: u16::from(byte(2) % 9),
        flags: u32::from(byte(3)),
        buf_alloc: u32::from(byte(4)) << (byte(5) % 24),
        fwd_cnt: u32::from(byte(6)),
    };
    [&header.to_bytes()[..], rest].concat()
}
