//! The loopback interface.
//!
//! The one thing of the network that every image counts on. Brought up over netlink, which needs no ioctl.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::io;

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: i32 = 1;

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    // No protocol is number 0, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (len, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(&answer[..len])
}

/// ```text
///  0      4     6      8        12    16      17   18    20     24     28      32
///  | len  | type | flags | sequence | pid | family | 0  | type | index | flags | change |
///  └────────────── nlmsghdr ───────────────┘└──────────────── ifinfomsg ───────────────┘
/// ```
fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

/// An acknowledgement is an error message with the number 0 behind its header.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let field = |at: usize| answer.get(at..).and_then(|rest| rest.first_chunk().copied());
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    match (kind, field(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_that_it_says() {
        let request = request();
        assert_eq!(request.len(), 32);
        assert_eq!(request[..4], 32u32.to_ne_bytes());
    }

    #[test]
    fn an_answer_cut_short_is_an_error() {
        let mut answer = vec![0; 20];
        answer[4] = 2;
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!((0..20).all(|len| acknowledged(&answer[..len]).is_err()));
    }
}
