//! Netlink: messages, there and back.
//!
//! ```text
//!  0      4     6      8        12    16
//!  | len  | type | flags | sequence | pid | what the type has: a struct, then attributes | the next message …
//!  └────────────── header ──────────────┘
//!   attribute:  0     2      4
//!               | len | type | value … | up to a multiple of 4
//! ```
//!
//! The kernel is believed no more than anybody: a length that leads out of its message is an error.

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{io, os::fd::OwnedFd, time::Duration};

/// Flags of a message.
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

/// Types that every protocol has.
const ERROR: u16 = 2;
const DONE: u16 = 3;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// What of an attribute's type is its type; the rest says how to read it.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The kernel sends no longer ones to who reads with this much room.
const DATAGRAM: usize = 32 << 10;

/// The kernel answers before a request returns. So this is for what cannot happen.
const PATIENCE: Duration = Duration::from_secs(1);

/// A message to the kernel.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// One of type `kind`, which begins with `fixed`.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes).padded()
    }

    /// Adds an attribute. Ours are a few bytes long.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.padded()
    }

    /// Its length is no part of it before now.
    fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// What is behind the header: attributes alone when nothing came before them. For one inside another.
    #[cfg(test)]
    pub(super) fn attributes(&self) -> Vec<u8> {
        self.0[HEADER..].to_vec()
    }

    fn flagged(mut self, flags: u16) -> Self {
        let all = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }
}

/// A way to the kernel, in the network namespace of the thread that opened it.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// To interfaces, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None) // No protocol is number 0, NETLINK_ROUTE.
    }

    /// To the kernel's list of sockets.
    pub(super) fn diagnosis() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Has the kernel do each of `messages`. How it went with each, in their order.
    ///
    /// They are one datagram and the answers wait in the socket, so a hundred are too many.
    pub(super) fn order(&self, messages: Vec<Message>) -> io::Result<Vec<io::Result<()>>> {
        let expected = messages.len();
        let datagram: Vec<u8> = messages.into_iter().flat_map(|message| message.flagged(ACK).0).collect();
        send(&self.0, &datagram, SendFlags::empty())?;
        let mut results = Vec::with_capacity(expected);
        while results.len() < expected {
            for answer in answers(&self.receive()?) {
                results.push(outcome(answer?)?);
            }
        }
        Ok(results)
    }

    /// Has the kernel do one thing.
    pub(super) fn order_one(&self, message: Message) -> io::Result<()> {
        self.order(vec![message])?.pop().unwrap_or_else(|| Err(malformed()))
    }

    /// Asks for a list, and shows what each message of it has behind its header.
    pub(super) fn list(&self, message: Message, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        send(&self.0, &message.flagged(DUMP).0, SendFlags::empty())?;
        loop {
            for answer in answers(&self.receive()?) {
                match answer? {
                    Answer { kind: DONE, .. } => return Ok(()),
                    error @ Answer { kind: ERROR, .. } => return outcome(error)?,
                    one => each(one.payload)?,
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; DATAGRAM];
        let (_, len) = rustix::io::retry_on_intr(|| recv(&self.0, &mut datagram[..], RecvFlags::TRUNC))?;
        if len == 0 || len > datagram.len() {
            return Err(malformed());
        }
        datagram.truncate(len);
        Ok(datagram)
    }
}

/// A message from the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    kind: u16,
    payload: &'a [u8],
}

/// The messages of a datagram. An error is the last.
fn answers(datagram: &[u8]) -> impl Iterator<Item = io::Result<Answer<'_>>> {
    pieces(datagram, HEADER, |header| {
        let len = u32::from_ne_bytes(*header.first_chunk()?);
        Some((usize::try_from(len).ok()?, u16::from_ne_bytes(*header[4..].first_chunk()?)))
    })
    .map(|piece| piece.map(|(kind, payload)| Answer { kind, payload }))
}

/// The attributes in `bytes`, by type. An error is the last.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    pieces(bytes, ATTRIBUTE_HEADER, |header| {
        let len = u16::from_ne_bytes(*header.first_chunk()?);
        Some((len.into(), u16::from_ne_bytes(*header[2..].first_chunk()?) & ATTRIBUTE_TYPE))
    })
}

/// Pieces, each of which says in a header how long it is, and of what type.
fn pieces(
    mut rest: &[u8],
    header_len: usize,
    read: impl Fn(&[u8]) -> Option<(usize, u16)>,
) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.get(..header_len).and_then(&read).and_then(|(len, kind)| {
            let payload = rest.get(header_len..len)?;
            // The last one need not be padded.
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, payload))
        });
        if piece.is_none() {
            rest = &[];
        }
        Some(piece.ok_or_else(malformed))
    })
}

/// An acknowledgement is an error message with the number 0.
fn outcome(answer: Answer<'_>) -> io::Result<io::Result<()>> {
    match (answer.kind, answer.payload.first_chunk().copied().map(i32::from_ne_bytes)) {
        (ERROR, Some(0)) => Ok(Ok(())),
        (ERROR, Some(error)) => Ok(Err(io::Error::from_raw_os_error(error.saturating_neg()))),
        _ => Err(malformed()),
    }
}

/// What the kernel said makes no sense.
pub(super) fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer over netlink is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_has_the_length_that_it_says_and_its_attributes_come_back() {
        let message = Message::new(16, REPLACE, &[7; 16]).attribute(3, b"eth0\0").attribute(4, &[1; 4]);
        let mut seen = answers(&message.0);
        let answer = seen.next().unwrap().unwrap();
        assert!(seen.next().is_none());
        assert_eq!((answer.kind, &answer.payload[..16]), (16, &[7; 16][..]));
        let attributes: Vec<_> = attributes(&answer.payload[16..]).map(Result::unwrap).collect();
        assert_eq!(attributes, [(3, &b"eth0\0"[..]), (4, &[1; 4][..])]);
    }

    #[test]
    fn an_answer_cut_short_is_an_error_and_an_error_has_its_number() {
        let refusal = Message::new(ERROR, 0, &(-1i32).to_ne_bytes()).0;
        let read = |bytes: &[u8]| answers(bytes).next().unwrap().and_then(outcome);
        let refused = read(&refusal).unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!((1..20).all(|len| read(&refusal[..len]).is_err()));
        assert!(read(&Message::new(ERROR, 0, &[0; 4]).0).unwrap().is_ok());
        // The smallest number there is has no positive one.
        assert!(read(&Message::new(ERROR, 0, &i32::MIN.to_ne_bytes()).0).unwrap().is_err());
    }

    #[test]
    fn a_length_that_ends_before_its_header_does_is_an_error_and_not_for_ever() {
        for len in 0..16u8 {
            let mut bytes = vec![0; 64];
            bytes[0] = len;
            let all: Vec<_> = answers(&bytes).collect();
            assert!(all.len() == 1 && all[0].is_err(), "{len}: {all:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end_or_to_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for piece in answers(&bytes).flatten() {
                let _ = attributes(piece.payload).count();
                let _ = outcome(piece);
            }
            let all: Vec<_> = attributes(&bytes).collect();
            prop_assert!(all.len() <= bytes.len() / ATTRIBUTE_HEADER + 1);
            prop_assert!(all.iter().rev().skip(1).all(Result::is_ok), "something came behind an error");
        }
    }
}
