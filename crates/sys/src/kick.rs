//! Stopping a vCPU from another thread, without a moment in which the stop can be lost.
//!
//! `KVM_RUN` looks at `immediate_exit` in the shared run page on its way in, and a signal ends it when it is in. So the
//! flag is set first, then the thread is signalled: whichever side of the entry the vCPU is on, it comes back.

use crate::SysError;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

const PAGE: usize = 4096;

/// A second view of the page in which KVM and a vCPU's thread talk. Unmapped with its last owner.
#[derive(Debug)]
pub(crate) struct RunPage(AtomicPtr<u8>);

impl RunPage {
    /// Maps the first page of the vCPU behind `fd`, which has one as long as it is open, and longer while it is mapped.
    pub(crate) fn map(fd: RawFd) -> Result<Self, SysError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, fd, 0) };
        if page == libc::MAP_FAILED {
            return Err(SysError::last("mmap a vCPU's run page"));
        }
        let page = Self(AtomicPtr::new(page.cast())); // From here on, unmapped when something fails.
        keep_from_children(page.0.load(Ordering::Relaxed), PAGE)?;
        Ok(page)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let at = self.0.load(Ordering::Relaxed).wrapping_add(offset_of!(kvm_bindings::kvm_run, immediate_exit));
        // SAFETY: The byte lies in the page that `self` keeps mapped, and is only ever accessed atomically: by us
        // here, and by the kernel, for which a single byte is atomic.
        unsafe { AtomicU8::from_ptr(at) }
    }

    pub(crate) fn set_immediate_exit(&self, value: bool) {
        self.immediate_exit().store(u8::from(value), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        let page = self.0.load(Ordering::Relaxed);
        // SAFETY: `page` was mapped with this length in `map`, and its only user is `self`.
        unsafe { libc::munmap(page.cast(), PAGE) };
    }
}

/// Leaves the `len` bytes mapped at `start` out of every `fork(2)`. A child has no use for its parent's run pages, and
/// with them it would keep the parent's virtual machine in the kernel for as long as it lives.
pub(crate) fn keep_from_children(start: *mut u8, len: usize) -> Result<(), SysError> {
    // SAFETY: This changes no content and no mapping of this process. In a child nothing is there: there the owners of
    // run pages are in frames to which `fork` never returns.
    match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTFORK) } {
        0 => Ok(()),
        _ => Err(SysError::last("madvise(MADV_DONTFORK) a vCPU's run page")),
    }
}

/// Makes one vCPU come back from the guest.
#[derive(Debug, Clone)]
pub struct Kicker {
    pub(crate) page: Arc<RunPage>,
    pub(crate) thread: Arc<AtomicI32>,
}

impl Kicker {
    pub(crate) fn new(vcpu: &impl AsRawFd) -> Result<Self, SysError> {
        install_handler()?;
        Ok(Self { page: Arc::new(RunPage::map(vcpu.as_raw_fd())?), thread: Arc::new(AtomicI32::new(0)) })
    }

    /// The current thread will run the vCPU.
    pub(crate) fn adopt_thread(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
    }

    /// Makes the vCPU's [`run`](crate::Vcpu::run) complete what is pending and return [`Exit::Kicked`](crate::Exit);
    /// also when it is not running yet.
    pub fn kick(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            let process = rustix::process::getpid().as_raw_nonzero().get();
            // SAFETY: Signals a thread of this very process by number. The handler does nothing, so even a thread that
            // got the number of one that ended is only interrupted.
            unsafe { libc::tgkill(process, thread, signal()) };
        }
    }
}

fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs a handler that does nothing, so that the signal interrupts `KVM_RUN` and no more.
fn install_handler() -> Result<(), SysError> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        extern "C" fn nothing(_: i32) {}
        let handler: extern "C" fn(i32) = nothing;
        // SAFETY: An all-zero `sigaction` is a valid one: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        // SAFETY: `action` is valid, and its handler is safe in any context as it does nothing.
        unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) == 0 }
    });
    if *installed { Ok(()) } else { Err(SysError::last("sigaction")) }
}
