//! What is said of a frame before it: how much of the work on it is left to do.
//!
//! ```text
//! 0       1          2         4          6            8             10            12
//! | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers | frame …
//! ```

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::ETHERNET_BYTES;

/// Bytes before every frame, in both directions.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS_AT: usize = 10;
/// Where `flags` is.
pub(super) const FLAGS_AT: usize = 0;

/// The least that a segment of TCP holds: Linux sends no shorter ones (`TCP_MIN_SND_MSS`). With less, one frame would cost
/// the host tens of thousands of segments.
const MIN_SEGMENT_BYTES: u16 = 48;
/// The least headers that there are before that of TCP: IPv4's 20 bytes, IPv6's 40.
const IPV4_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;
const TCP_BYTES: u32 = 20;
/// Where TCP has its checksum.
const TCP_CHECKSUM_AT: u16 = 16;

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const NO_SEGMENTS: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// The header of a frame that a driver sends.
///
/// Holding one proves that it may: all that it says is of this frame, and was agreed on. It says nothing of the frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    checksum: Option<Checksum>,
    segments: Option<Segments>,
}

/// Where a checksum is to be put: over all from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checksum {
    start: u16,
    offset: u16,
}

/// Into what a frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segments {
    kind: u8,
    header_len: u16,
    len: u16,
}

/// A header that says what cannot be, or what was not agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Header {
    /// Checks the header of a frame of `frame_len` bytes from a driver that has accepted `features`. Flags that mean nothing
    /// in this direction are left out, as are numbers that belong to what is not asked for.
    pub(super) fn claim(bytes: &[u8; HEADER_BYTES], frame_len: usize, features: u64) -> Result<Self, Malformed> {
        let [flags, kind, rest @ ..] = bytes;
        let number = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        let (header_len, len, start, offset) = (number(0), number(2), number(4), number(6));
        let frame_len = u32::try_from(frame_len).map_err(|_| Malformed)?;
        let checksum = match flags & NEEDS_CHECKSUM {
            0 => None,
            _ => Some(Checksum { start, offset }.check(frame_len, features)?),
        };
        let segments = match *kind {
            NO_SEGMENTS => None,
            kind => Some(Segments { kind, header_len, len }.check(frame_len, checksum, features)?),
        };
        Ok(Self { checksum, segments })
    }

    /// The same as bytes.
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        if let Some(Checksum { start, offset }) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&start.to_le_bytes());
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        if let Some(Segments { kind, header_len, len }) = self.segments {
            bytes[1] = kind;
            bytes[2..4].copy_from_slice(&header_len.to_le_bytes());
            bytes[4..6].copy_from_slice(&len.to_le_bytes());
        }
        bytes
    }
}

impl Checksum {
    fn check(self, frame_len: u32, features: u64) -> Result<Self, Malformed> {
        let begins_behind_ethernet = usize::from(self.start) >= ETHERNET_BYTES;
        let is_in_frame = u32::from(self.start) + u32::from(self.offset) + 2 <= frame_len;
        let agreed = has(features, VIRTIO_NET_F_CSUM);
        if begins_behind_ethernet && is_in_frame && agreed { Ok(self) } else { Err(Malformed) }
    }
}

impl Segments {
    fn check(self, frame_len: u32, checksum: Option<Checksum>, features: u64) -> Result<Self, Malformed> {
        let (feature, ip_bytes) = match self.kind & !ECN {
            TCP4 => (VIRTIO_NET_F_HOST_TSO4, IPV4_BYTES),
            TCP6 => (VIRTIO_NET_F_HOST_TSO6, IPV6_BYTES),
            _ => return Err(Malformed),
        };
        let agreed = has(features, feature) && (self.kind & ECN == 0 || has(features, VIRTIO_NET_F_HOST_ECN));
        // Every segment gets a checksum of its own.
        let Some(Checksum { start, offset: TCP_CHECKSUM_AT }) = checksum else { return Err(Malformed) };
        let has_headers =
            u32::from(start) >= ETHERNET_BYTES as u32 + ip_bytes && u32::from(start) + TCP_BYTES <= frame_len;
        let is_in_frame = u32::from(self.header_len) <= frame_len;
        let is_long_enough = self.len >= MIN_SEGMENT_BYTES;
        if agreed && has_headers && is_in_frame && is_long_enough { Ok(self) } else { Err(Malformed) }
    }
}

/// Whether `feature` is among `features`.
pub(super) fn has(features: u64, feature: u32) -> bool {
    features >> feature & 1 == 1
}

/// `data` is a header, the length of its frame, and features. What is let through says the same when it is read again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_header(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    let Some((len, rest)) = rest.split_first_chunk::<4>() else { return };
    let Some((features, _)) = rest.split_first_chunk::<8>() else { return };
    let (len, features) = (u32::from_le_bytes(*len) as usize, u64::from_le_bytes(*features));
    if let Ok(claimed) = Header::claim(header, len, features) {
        let bytes = claimed.to_bytes();
        assert_eq!(Header::claim(&bytes, len, features), Ok(claimed));
        assert!(bytes[0] & !NEEDS_CHECKSUM == 0 && bytes[NUM_BUFFERS_AT..] == [0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = u64::MAX;
    const FRAME: usize = 14 + 20 + 20 + 4000;

    fn bytes(flags: u8, kind: u8, numbers: [u16; 4]) -> [u8; HEADER_BYTES] {
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7];
        for (at, number) in (2..).step_by(2).zip(numbers) {
            bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_a_driver_may_send_gets_through_as_it_is() {
        for (header, len) in [
            (bytes(0, 0, [0; 4]), 14),
            (bytes(1, 0, [0, 0, 34, 6]), 42),
            (bytes(1, 0, [0, 0, 14, 0]), 16),
            (bytes(1, 1, [54, 1448, 34, 16]), FRAME),
            (bytes(1, 1 | 128, [54, 48, 34, 16]), FRAME),
            (bytes(1, 4, [74, 1428, 54, 16]), FRAME),
            (bytes(1, 1, [FRAME as u16, u16::MAX, 34, 16]), FRAME),
        ] {
            let claimed = Header::claim(&header, len, ALL).unwrap().to_bytes();
            assert_eq!(claimed[..NUM_BUFFERS_AT], header[..NUM_BUFFERS_AT]);
            assert_eq!(claimed[NUM_BUFFERS_AT..], [0, 0], "that is for the other direction");
        }
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let claimed = Header::claim(&bytes(0xfe, 0, [9, 9, 9, 9]), 14, ALL).unwrap();
        assert_eq!(claimed.to_bytes(), [0; HEADER_BYTES]);
        let claimed = Header::claim(&bytes(0xff, 0, [9, 9, 14, 9]), 60, ALL).unwrap();
        assert_eq!(claimed.to_bytes()[..10], bytes(1, 0, [0, 0, 14, 9])[..10]);
    }

    #[test]
    fn a_header_that_cannot_be_of_its_frame_is_refused() {
        for (why, header) in [
            ("a checksum behind the frame", bytes(1, 0, [0, 0, FRAME as u16, 0])),
            ("a checksum that ends behind the frame", bytes(1, 0, [0, 0, 34, FRAME as u16 - 35])),
            ("a checksum whose place wraps", bytes(1, 0, [0, 0, u16::MAX, u16::MAX])),
            ("a checksum over the Ethernet header", bytes(1, 0, [0, 0, 13, 16])),
            ("segments without a checksum", bytes(0, 1, [54, 1448, 34, 16])),
            ("segments of nothing", bytes(1, 1, [54, 0, 34, 16])),
            ("segments that are too many", bytes(1, 1, [54, 47, 34, 16])),
            ("segments of UDP, the old kind", bytes(1, 3, [54, 1448, 34, 6])),
            ("segments of UDP", bytes(1, 5, [54, 1448, 34, 6])),
            ("segments of an unknown kind", bytes(1, 2, [54, 1448, 34, 16])),
            ("segments of no kind, with ECN", bytes(1, 128, [54, 1448, 34, 16])),
            ("segments of two kinds", bytes(1, 1 | 4, [54, 1448, 34, 16])),
            ("segments of a kind with unknown bits", bytes(1, 1 | 64, [54, 1448, 34, 16])),
            ("segments whose headers are longer than the frame", bytes(1, 1, [FRAME as u16 + 1, 1448, 34, 16])),
            ("segments whose checksum is not TCP's", bytes(1, 1, [54, 1448, 34, 6])),
            ("segments without room for IPv4", bytes(1, 1, [54, 1448, 33, 16])),
            ("segments without room for IPv6", bytes(1, 4, [54, 1448, 53, 16])),
            ("segments without room for TCP", bytes(1, 1, [54, 1448, FRAME as u16 - 19, 16])),
        ] {
            assert_eq!(Header::claim(&header, FRAME, ALL), Err(Malformed), "{why}");
        }
    }

    #[test]
    fn what_was_not_agreed_on_is_refused() {
        let without = |feature: u32| ALL & !(1 << feature);
        for (header, feature) in [
            (bytes(1, 0, [0, 0, 34, 16]), VIRTIO_NET_F_CSUM),
            (bytes(1, 1, [54, 1448, 34, 16]), VIRTIO_NET_F_HOST_TSO4),
            (bytes(1, 4, [74, 1448, 54, 16]), VIRTIO_NET_F_HOST_TSO6),
            (bytes(1, 1 | 128, [54, 1448, 34, 16]), VIRTIO_NET_F_HOST_ECN),
        ] {
            assert!(Header::claim(&header, FRAME, ALL).is_ok());
            assert_eq!(Header::claim(&header, FRAME, without(feature)), Err(Malformed), "{feature}");
        }
    }

    proptest! {
        #[test]
        fn whatever_gets_through_is_within_its_frame(
            header: [u8; HEADER_BYTES], flags in 0u8..4, kind in 0u8..6, len in 0usize..70_000, features: u64,
        ) {
            let mut likely = header;
            (likely[0], likely[1]) = (flags, kind);
            for header in [header, likely] {
                fuzz_header(&[&header[..], &(len as u32).to_le_bytes(), &features.to_le_bytes()].concat());
                let Ok(claimed) = Header::claim(&header, len, features) else { continue };
                if let Some(Checksum { start, offset }) = claimed.checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= len);
                }
                if let Some(segments) = claimed.segments {
                    prop_assert!(usize::from(segments.header_len) <= len && segments.len >= MIN_SEGMENT_BYTES);
                    prop_assert!(claimed.checksum.is_some());
                }
            }
        }
    }
}
