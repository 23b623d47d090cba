//! A queue of a tap: frames straight from and to guest memory, without a copy in between.

use crate::SysError;
use rustix::io::ioctl_fionbio;
use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vm_memory::VolatileSlice;

/// Before every frame: a `virtio_net_hdr_v1`, in bytes.
static HEADER_BYTES: libc::c_int = 12;
/// The most pieces of one frame, without the one that finds out whether it fitted: the kernel takes 1024 (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1023;

const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;

/// What a tap here is made with, and the name of each.
const FLAGS: [(i32, &str); 4] = [
    (libc::IFF_TAP, "IFF_TAP"),
    (libc::IFF_NO_PI, "IFF_NO_PI"),
    (libc::IFF_VNET_HDR, "IFF_VNET_HDR"),
    (libc::IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE"),
];

/// What whoever reads a tap does by himself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// He takes frames whose checksum is yet to be computed. Without it, the others mean nothing.
    pub checksum: bool,
    /// TCP segments over IPv4 that are longer than a frame may be.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Such segments with ECN.
    pub ecn: bool,
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    is_attached: bool,
}

impl Tap {
    /// Takes over a queue of a tap, and has its frames begin with 12 bytes of header.
    ///
    /// # Errors
    ///
    /// It is no tap, or one that was made in another way.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SysError> {
        let flags = i32::from(flags(&fd)? as u16);
        if let Some((_, name)) = FLAGS.iter().find(|(flag, _)| flags & flag == 0) {
            return Err(SysError::other("use this tap", format!("it was made without {name}")));
        }
        ioctl_fionbio(&fd, true).map_err(|error| SysError::io("ioctl(FIONBIO)", error.into()))?;
        // SAFETY: The kernel reads an `int` where it is told to, which outlives the call.
        match unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const HEADER_BYTES) } {
            0 => Ok(Self { fd, is_attached: flags & libc::IFF_DETACH_QUEUE == 0 }),
            _ => Err(SysError::last("ioctl(TUNSETVNETHDRSZ)")),
        }
    }

    /// Says what the tap, with all of its queues, may leave to whoever reads it.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), SysError> {
        // SAFETY: This request takes a number, and touches no memory of this process.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, offloads.bits()) } {
            0 => Ok(()),
            _ => Err(SysError::last("ioctl(TUNSETOFFLOAD)")),
        }
    }

    /// Whether the tap puts frames into this queue. One that it does not has none, and what was in it is lost.
    pub fn set_attached(&mut self, attached: bool) -> Result<(), SysError> {
        if attached == self.is_attached {
            return Ok(()); // The kernel would refuse it.
        }
        let mut request = empty_request();
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: The kernel reads an `ifreq` where it is told to, which outlives the call.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETQUEUE, &raw const request) } {
            0 => self.is_attached = attached,
            _ => return Err(SysError::last("ioctl(TUNSETQUEUE)")),
        }
        Ok(())
    }

    /// Takes the next frame with its header out of the queue, and puts it into `buffers`, at most [`MAX_PIECES`], one
    /// behind the other. Returns how long it was; when that is more than the buffers hold, the rest of it is lost.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn read(&self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut spilled = 0u8; // Whatever gets here did not fit.
        let mut pieces: Vec<_> = buffers.iter().map(piece).collect();
        pieces.push(libc::iovec { iov_base: (&raw mut spilled).cast(), iov_len: 1 });
        let count = pieces.len() as libc::c_int; // The kernel refuses what is more than it takes.
        // SAFETY: Each piece is guest memory, which stays mapped and which nothing here has a reference into, or `spilled`,
        // which outlives the call.
        match unsafe { libc::readv(self.fd.as_raw_fd(), pieces.as_ptr(), count) } {
            -1 => Err(io::Error::last_os_error()),
            len => Ok(len as usize),
        }
    }

    /// Sends one frame: `head`, which begins with its header, and then `rest`, at most [`MAX_PIECES`].
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is no room for it now. Else the kernel will not have it, or not as things are.
    pub fn write(&self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        let head = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        let pieces: Vec<_> = std::iter::once(head).chain(rest.iter().map(piece)).collect();
        let count = pieces.len() as libc::c_int; // As above.
        // SAFETY: Each piece is guest memory, which stays mapped, or `head`, which outlives the call; the kernel only reads.
        match unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), count) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()), // A frame goes as a whole.
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Offloads {
    /// `TUN_F_*`.
    fn bits(self) -> c_uint {
        let Self { checksum, tso4, tso6, ecn } = self;
        let bits =
            [(checksum, 1), (checksum && tso4, 2), (checksum && tso6, 4), (checksum && (tso4 || tso6) && ecn, 8)];
        bits.iter().map(|(is_set, bit)| if *is_set { *bit } else { 0 }).sum()
    }
}

fn piece(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

/// The flags of the tap that `fd` is a queue of.
fn flags(fd: &OwnedFd) -> Result<libc::c_short, SysError> {
    let mut request = empty_request();
    // SAFETY: The kernel writes an `ifreq` where it is told to, which outlives the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) } {
        // SAFETY: That is what this request answers with.
        0 => Ok(unsafe { request.ifr_ifru.ifru_flags }),
        _ => Err(SysError::last("use this descriptor as a tap (TUNGETIFF)")),
    }
}

/// Makes `file`, of [`tap_file`](crate::tap_file), a queue of the tap `name` in the namespace that the file is of. The first one
/// makes the tap, the last one that is closed takes it away. Each frame has a `virtio_net_hdr` of 10 bytes before it, until
/// [`Tap::from_fd`].
///
/// # Errors
///
/// The name is too long, or the kernel would not have it.
pub fn attach_tap(file: BorrowedFd<'_>, name: &str) -> Result<(), SysError> {
    let mut request = named_request(name)?;
    request.ifr_ifru.ifru_flags = FLAGS.iter().fold(0, |all, (flag, _)| all | flag) as libc::c_short; // 16 bits of them.
    // SAFETY: The kernel reads and writes an `ifreq` where it is told to, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) } {
        -1 => Err(SysError::last("ioctl(TUNSETIFF)")),
        _ => Ok(()),
    }
}

fn empty_request() -> libc::ifreq {
    // SAFETY: Zeroes are a valid `ifreq`: it is numbers, and a union of numbers and null pointers.
    unsafe { std::mem::zeroed() }
}

/// One about the interface `name`.
fn named_request(name: &str) -> Result<libc::ifreq, SysError> {
    let mut request = empty_request();
    if name.len() >= request.ifr_name.len() {
        return Err(SysError::other("name an interface", format!("{name} is too long"))); // A zero comes behind it.
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    Ok(request)
}

pub mod testing {
    //! For tests of what uses taps: one in a network namespace of its own, and whoever is at its other end.

    use super::{attach_tap, named_request};
    use crate::{new_network, tap_file};
    use std::fs;
    use std::io;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::thread;

    const NAME: &str = "tap0";
    /// A packet socket does not see what it sends itself.
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

    /// The queues of a new tap that is up, and a packet socket at its other end: each packet is a frame behind 10 bytes of
    /// `virtio_net_hdr`. Nothing else is in their namespace, which ends with them. Needs `CAP_NET_ADMIN` and
    /// `CAP_SYS_ADMIN`.
    pub fn tap(queues: usize) -> io::Result<(Vec<OwnedFd>, OwnedFd)> {
        let made = thread::spawn(move || {
            new_network().map_err(io::Error::other)?;
            // Else the kernel's own frames are among those of the test. Without IPv6 there is no such file.
            let _: io::Result<()> = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            let queue = |_| tap_file().and_then(|file| attach_tap(file.as_fd(), NAME).map(|()| file));
            let queues = (0..queues).map(queue).collect::<Result<_, _>>().map_err(io::Error::other)?;
            Ok((queues, other_end()?))
        });
        made.join().map_err(|_| io::Error::other("the thread that makes a tap panicked"))?
    }

    fn other_end() -> io::Result<OwnedFd> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: A new descriptor, which is nobody else's.
        let raw = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, all.into())
        };
        checked(raw)?;
        // SAFETY: As above.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut request = named_request(NAME).map_err(io::Error::other)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as libc::c_short;
        // SAFETY: The kernel reads an `ifreq` where it is told to, which outlives the call.
        checked(unsafe { libc::ioctl(raw, libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) })?;
        // SAFETY: The kernel writes an `ifreq` where it is told to, which outlives the call.
        checked(unsafe { libc::ioctl(raw, libc::SIOCGIFINDEX as libc::Ioctl, &raw mut request) })?;
        // SAFETY: That is what this request answers with.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        // SAFETY: Zeroes are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol, address.sll_ifindex) = (libc::AF_PACKET as u16, all, index);
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: The kernel reads a `sockaddr_ll`, which outlives the call.
        checked(unsafe { libc::bind(raw, (&raw const address).cast(), len) })?;
        for option in [libc::PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
            let on: libc::c_int = 1;
            let len = size_of::<libc::c_int>() as libc::socklen_t;
            // SAFETY: The kernel reads an `int`, which outlives the call.
            checked(unsafe { libc::setsockopt(raw, libc::SOL_PACKET, option, (&raw const on).cast(), len) })?;
        }
        Ok(socket)
    }

    fn checked(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    #[test]
    fn the_numbers_match_the_kernel_headers() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };
        assert_eq!(all.bits(), 15);
        assert_eq!(Offloads { checksum: false, ..all }.bits(), 0, "nothing without a checksum");
        assert_eq!(Offloads { tso4: false, tso6: false, ..all }.bits(), 1);
        let size_of_int = 4 << 16 | 1 << 30 | (b'T' as libc::Ioctl) << 8;
        assert_eq!([TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE], [208, 216, 217].map(|number| size_of_int | number));
        assert_eq!(TUNGETIFF, 4 << 16 | 2 << 30 | (b'T' as libc::Ioctl) << 8 | 210);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        assert!(Tap::from_fd(File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn a_frame_goes_from_and_to_guest_memory_and_one_too_long_is_known() {
        let Some((mut queues, far)) = made() else { return };
        let tap = Tap::from_fd(queues.remove(0)).unwrap();
        let mut far = File::from(far);
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let slice = |at, len| memory.get_slice(GuestAddress(at), len).unwrap();
        assert_eq!(tap.read(&[slice(0, 100)]).unwrap_err().kind(), ErrorKind::WouldBlock);

        memory.write_slice(&[7; 48], GuestAddress(1000)).unwrap();
        tap.write(&[&[0; 12][..], &[0xff; 12], &[0x88, 0xb5]].concat(), &[slice(1000, 40), slice(1040, 8)]).unwrap();
        let mut packet = [0; 100];
        assert_eq!(far.read(&mut packet).unwrap(), 10 + 14 + 48);
        assert_eq!(packet[24..72], [7; 48]);

        for room in [100, 12 + 14 + 47] {
            far.write_all(&[&[0; 10][..], &[0xff; 12], &[0x88, 0xb5], &[9; 48]].concat()).unwrap();
            let len = tap.read(&[slice(0, 20), slice(2000, room - 20)]).unwrap();
            assert_eq!(len.min(room + 1), if room == 100 { 12 + 14 + 48 } else { room + 1 });
            assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(2006)).unwrap(), [9; 32]);
        }
    }

    #[test]
    fn a_queue_that_is_not_attached_gets_nothing() {
        let Some((queues, far)) = made() else { return };
        let mut taps: Vec<_> = queues.into_iter().map(|queue| Tap::from_fd(queue).unwrap()).collect();
        let mut far = File::from(far);
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        for only in [0, 1] {
            taps[only].set_attached(true).unwrap();
            taps[1 - only].set_attached(false).unwrap();
            for flow in 0..16u8 {
                far.write_all(&[&[0; 10][..], &[flow; 12], &[0x88, 0xb5], &[flow; 48]].concat()).unwrap();
            }
            let count = |tap: &Tap| {
                let buffer = memory.get_slice(GuestAddress(0), 4096).unwrap();
                std::iter::from_fn(|| tap.read(&[buffer]).ok()).count()
            };
            assert_eq!([count(&taps[only]), count(&taps[1 - only])], [16, 0]);
        }
    }

    fn made() -> Option<(Vec<OwnedFd>, OwnedFd)> {
        match testing::tap(2) {
            Ok(made) => Some(made),
            Err(error) => {
                eprintln!("skipped: no tap can be made here: {error}");
                None
            }
        }
    }
}
