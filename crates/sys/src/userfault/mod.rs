//! Guest RAM that arrives lazily: `userfaultfd(2)`.
//!
//! Whoever touches a page that is not there yet, the guest, this process or the kernel on behalf of either, sleeps until
//! the page is put there. That takes one call, which nobody sees half-done and which never replaces a page that is there.
//! (The kernel's Documentation/admin-guide/mm/userfaultfd.rst.)
//!
//! **Missing pages read as zeroes as soon as nobody registers them any more.** So a [`Userfault`] closes its descriptor
//! only after [`unregister`](Userfault::unregister), and is leaked otherwise: then those who wait go on waiting, until
//! the process ends. A fork(2) carries no registration over: in the child, missing pages are zeroes until the child
//! registers them with a `Userfault` of its own.

mod abi; // the kernel's numbers and structs
#[cfg(test)]
mod tests;

use crate::{HUGE_PAGE, SysError};
use abi::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::c_int;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PAGE: u64 = 4096;
/// Events read at once.
const EVENTS: usize = 32;

/// The memory of one guest, all of it registered: a page of it that is missing is waited for.
#[derive(Debug)]
pub struct Userfault {
    /// Closed by `drop`, if it may be.
    fd: ManuallyDrop<OwnedFd>,
    memory: GuestMemoryMmap,
    is_registered: AtomicBool,
}

impl Userfault {
    /// Registers `memory` by `userfaultfd(2)`, which needs `CAP_SYS_PTRACE`: KVM's faults are the kernel's.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, SysError> {
        // SAFETY: It takes flags only, and makes a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        Self::register(fd as c_int, "userfaultfd", memory)
    }

    /// Registers `memory` by `device`, an open `/dev/userfaultfd`, which needs no other right.
    pub fn from_device(device: BorrowedFd<'_>, memory: GuestMemoryMmap) -> Result<Self, SysError> {
        // SAFETY: It takes flags only, and makes a new descriptor; any other file than the device refuses it.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, FLAGS) };
        Self::register(fd, "USERFAULTFD_IOC_NEW", memory)
    }

    fn register(fd: c_int, call: &'static str, memory: GuestMemoryMmap) -> Result<Self, SysError> {
        if fd < 0 {
            return Err(SysError::last(call));
        }
        // SAFETY: The kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: `Api` is what this request takes. It chooses a version and touches no memory.
        check(unsafe { ioctl(fd.as_fd(), UFFDIO_API, &mut api) }, "UFFDIO_API")?;
        for region in memory.iter() {
            let mut register = Register { range: Whole::of(region), mode: MODE_MISSING, ioctls: 0 };
            // SAFETY: `Register` is what this request takes. It makes those wait who touch a missing page of a guest,
            // for whose memory that is nothing worse than slow.
            check(unsafe { ioctl(fd.as_fd(), UFFDIO_REGISTER, &mut register) }, "UFFDIO_REGISTER")?;
        }
        Ok(Self { fd: ManuallyDrop::new(fd), memory, is_registered: AtomicBool::new(true) })
    }

    /// The memory. Touching it may wait for ever.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// From now on, missing pages are zeroes, also to those who wait for them now. Call it when no page is missing.
    pub fn unregister(&self) -> Result<(), SysError> {
        for region in self.memory.iter() {
            let mut range = Whole::of(region);
            // SAFETY: `Whole` is what this request takes. Missing pages of guest memory become what they are without
            // a userfaultfd: zeroes.
            check(unsafe { ioctl(self.fd.as_fd(), UFFDIO_UNREGISTER, &mut range) }, "UFFDIO_UNREGISTER")?;
            // The kernel has woken who waited, but before it forgot the range: somebody may have begun in between.
            self.wake(range.start, range.len)?;
        }
        self.is_registered.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Sleeps until somebody waits for a page, `wake` is readable, or `timeout` has passed; an interrupted sleep ends, too.
    pub fn wait(&self, wake: BorrowedFd<'_>, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(&*self.fd, PollFlags::IN), PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        // What there is to be read is found out by reading.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// Adds to `pages` the guest-physical page numbers for which somebody began to wait. One that has come meanwhile may
    /// be among them.
    pub fn read_faults(&self, pages: &mut Vec<u32>) -> Result<(), SysError> {
        let mut events = [0; EVENTS * EVENT_LEN];
        let len = match rustix::io::read(&*self.fd, &mut events) {
            Ok(len) => len,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(_) => return Err(SysError::last("read faults")),
        };
        let events = events[..len].as_chunks::<EVENT_LEN>().0;
        pages.extend(events.iter().filter_map(fault_address).filter_map(|address| self.page_at(address)));
        Ok(())
    }

    /// Puts `bytes`, whole pages, where they are missing, from page `first` on, and wakes those who wait for them. A page
    /// that is there keeps its content. How many were missing.
    pub fn copy(&self, first: u32, bytes: &[u8]) -> Result<u32, SysError> {
        let pages = u32::try_from(bytes.len() as u64 / PAGE).map_err(|_| outside())?;
        if bytes.len() as u64 != u64::from(pages) * PAGE {
            return Err(outside());
        }
        let end = first.checked_add(pages).ok_or_else(outside)?;
        self.place(first..end, "UFFDIO_COPY", |start, len, done| {
            let from = bytes[done as usize..].as_ptr() as u64;
            let mut copy = Copy { to: start, from, len, mode: 0, copied: 0 };
            // SAFETY: `Copy` is what this request takes. It reads `len` bytes, the rest of `bytes`, and puts them where
            // `place` says: into missing pages of the guest memory that `self` owns.
            let result = unsafe { ioctl(self.fd.as_fd(), UFFDIO_COPY, &mut copy) };
            (result, copy.copied)
        })
    }

    /// Puts zeroes where pages of `run` are missing, and wakes those who wait for them. How many were missing.
    pub fn zero(&self, run: Range<u32>) -> Result<u32, SysError> {
        self.place(run, "UFFDIO_ZEROPAGE", |start, len, _| {
            let mut zero = Zero { range: Whole { start, len }, mode: 0, zeroed: 0 };
            // SAFETY: `Zero` is what this request takes. It touches the range that `place` gives: missing pages of the
            // guest memory that `self` owns.
            let result = unsafe { ioctl(self.fd.as_fd(), UFFDIO_ZEROPAGE, &mut zero) };
            (result, zero.zeroed)
        })
    }

    /// Calls `put(host address, bytes, bytes done before)` until every page of `run` is there.
    fn place(
        &self,
        run: Range<u32>,
        call: &'static str,
        put: impl Fn(u64, u64, u64) -> (io::Result<()>, i64),
    ) -> Result<u32, SysError> {
        if run.is_empty() {
            return Ok(0);
        }
        let start = host_address(&self.memory, &run)?;
        let len = u64::from(run.end - run.start) * PAGE;
        let (mut done, mut were_there) = (0, 0);
        while done < len {
            let (result, put_bytes) = put(start + done, len - done, done);
            match result.map_err(|error| error.raw_os_error()) {
                Ok(()) => done = len,
                // It came as far as this; or the address space is changing, and it is to be tried again.
                Err(Some(libc::EAGAIN)) => done += put_bytes.max(0) as u64,
                Err(Some(libc::EEXIST)) => {
                    done += PAGE;
                    were_there += 1;
                }
                Err(Some(libc::EINTR)) => {}
                Err(_) => return Err(SysError::last(call)),
            }
        }
        if were_there > 0 {
            self.wake(start, len)?; // Nothing else does where a page was there.
        }
        Ok((len / PAGE) as u32 - were_there)
    }

    fn wake(&self, start: u64, len: u64) -> Result<(), SysError> {
        let mut range = Whole { start, len };
        // SAFETY: `Whole` is what this request takes. Who is woken for nothing faults again.
        check(unsafe { ioctl(self.fd.as_fd(), UFFDIO_WAKE, &mut range) }, "UFFDIO_WAKE")
    }

    fn page_at(&self, address: u64) -> Option<u32> {
        self.memory.iter().find_map(|region| {
            let offset = address.checked_sub(region.as_ptr() as u64).filter(|offset| *offset < region.len())?;
            u32::try_from((region.start_addr().raw_value() + offset) / PAGE).ok()
        })
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        if !self.is_registered.load(Ordering::SeqCst) {
            // SAFETY: Nothing uses `fd` after this: `self` is being dropped.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Makes one huge page of the 2 MiB of which `page` is the first, now. Content stays; what is missing of it becomes
/// zeroes, where it is not registered.
pub fn collapse(memory: &GuestMemoryMmap, page: u32) -> Result<(), SysError> {
    let len = HUGE_PAGE;
    let end = page.checked_add((len / PAGE) as u32).ok_or_else(outside)?;
    let start = host_address(memory, &(page..end))?;
    // SAFETY: The range lies in guest memory, which `memory` keeps mapped, and its content stays as it is.
    match unsafe { libc::madvise(start as *mut _, len as usize, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(SysError::last("madvise(MADV_COLLAPSE)")),
    }
}

/// Gives the pages of `run` back to the host. They are zeroes from then on; where they are registered, they are missing.
pub fn give_back(memory: &GuestMemoryMmap, run: Range<u32>) -> Result<(), SysError> {
    if run.is_empty() {
        return Ok(());
    }
    let start = host_address(memory, &run)?;
    let len = u64::from(run.end - run.start) * PAGE;
    // SAFETY: The range lies in guest memory, which `memory` keeps mapped and which nobody borrows: it is only ever
    // copied in and out, and its content may change at any time.
    match unsafe { libc::madvise(start as *mut _, len as usize, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(SysError::last("madvise(MADV_DONTNEED)")),
    }
}

pub(crate) fn host_address(memory: &GuestMemoryMmap, run: &Range<u32>) -> Result<u64, SysError> {
    let start = GuestAddress(u64::from(run.start) * PAGE);
    let len = u64::from(run.end.saturating_sub(run.start)) * PAGE;
    let slice = memory.get_slice(start, len as usize).map_err(|_| outside())?;
    Ok(slice.ptr_guard_mut().as_ptr() as u64)
}

fn outside() -> SysError {
    SysError::too_many("place pages: they are not whole pages of one region of guest memory")
}

/// The address of a page fault, from the `uffd_msg` that reports it. We ask for no other events.
fn fault_address(event: &[u8; EVENT_LEN]) -> Option<u64> {
    let address = event[ADDRESS_AT..].first_chunk()?;
    (event[0] == EVENT_PAGEFAULT).then(|| u64::from_ne_bytes(*address))
}

fn check(result: io::Result<()>, call: &'static str) -> Result<(), SysError> {
    result.map_err(|_| SysError::last(call))
}
