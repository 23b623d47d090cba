//! `fork(2)`, and what a child may keep.

use crate::SysError;
use crate::crew::settled;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The nicest that a thread can be.
const NICEST: i32 = 19;
/// How long who gives way keeps a CPU: as short as the scheduler knows.
const SLICE: Duration = Duration::from_micros(100);

/// Copies this process. In the child only the calling thread exists, only the standard descriptors and `keep` are open,
/// and `in_child` gets `keep`. When it is through, the process ends: what the parent's stack owns there (descriptors that
/// are closed, and whose numbers may soon be somebody else's) is never looked at again. In the parent `keep` comes back, with the
/// child's process id.
///
/// Every other thread must stand at a known point, holding no lock that the child will want: it would wait for ever.
/// glibc sees to its own locks, the allocator's among them, and what [`spawn`](crate::spawn) started begins and ends
/// before or after.
pub fn fork(keep: Vec<OwnedFd>, in_child: impl FnOnce(Vec<OwnedFd>)) -> Result<(Pid, Vec<OwnedFd>), SysError> {
    let settled = settled();
    // SAFETY: A child of a process with threads may do what does not wait for them, and with glibc allocate; see above.
    // It has its own copy of all memory, and never gets back to a frame of its parent's, neither when `in_child`
    // returns nor when it panics.
    match unsafe { libc::fork() } {
        -1 => Err(SysError::last("fork")),
        0 => {
            let _end = EndOnUnwind;
            settled.forget();
            close_all_but(&keep);
            in_child(keep);
            exit_now()
        }
        child => Ok((Pid::from_raw(child).ok_or_else(|| SysError::last("fork"))?, keep)),
    }
}

/// Ends the process when it is dropped, which only a panic does.
struct EndOnUnwind;

impl Drop for EndOnUnwind {
    fn drop(&mut self) {
        exit_now();
    }
}

/// Ends this process and runs nothing that anybody left for its end: in a child, these are its parent's.
fn exit_now() -> ! {
    // SAFETY: It ends the process at once, whatever state it is in.
    unsafe { libc::_exit(1) }
}

/// From here on nothing is left of a child of this process when it ends, and nobody can wait for one. Children of
/// [`fork`] do the same with theirs.
pub fn disown_children() -> Result<(), SysError> {
    // SAFETY: It installs no handler, so no code of ours runs at a signal; `SIGCHLD` did nothing before either.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(SysError::last("signal(SIGCHLD)")),
        _ => Ok(()),
    }
}

/// From here on the calling thread leaves the CPUs to others that want them. For work that nobody waits for yet.
///
/// It is as nice as can be, preempts nobody (`SCHED_BATCH`, `sched(7)`), and asks for slices of 0.1 ms (`sched_setattr(2)`,
/// `sched_runtime` of a policy without deadlines, Linux 6.12): who is merely nice keeps the CPU, once it has it, until its
/// slice has passed, so others who take turns in short steps find it taken at each. Not `SCHED_IDLE`, which on a host where
/// something always runs has the CPU once in seconds, and so holds for half a minute what somebody does wait for by now.
pub fn give_way() {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_BATCH as u32,
        sched_flags: 0,
        sched_nice: NICEST,
        sched_priority: 0,
        sched_runtime: SLICE.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: It reads the attributes, which live until it returns, and changes nothing but how this thread is scheduled.
    // It may always; and if it might not, the thread would have the usual share.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// Closes every descriptor above the standard ones that is not in `keep`.
fn close_all_but(keep: &[OwnedFd]) {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: Their owners are in frames of the parent's, to which `fork` never returns: none is used after this.
    if unsafe { libc::close_range(first, last, 0) } != 0 {
        // A kernel before 5.9. A child that shares files with its parent would do harm to both.
        exit_now();
    }
}

/// Whether a descriptor of one process and one of another (or the same) are one open file, with one offset and one set
/// of flags. For tests: it needs the right to trace both, and a kernel with `kcmp(2)`.
pub fn is_one_file(one: (Pid, RawFd), other: (Pid, RawFd)) -> Result<bool, SysError> {
    const KCMP_FILE: i32 = 0;
    let pids = [one, other].map(|(pid, _)| pid.as_raw_nonzero().get());
    // SAFETY: It takes numbers only, and changes nothing.
    match unsafe { libc::syscall(libc::SYS_kcmp, pids[0], pids[1], KCMP_FILE, one.1 as u64, other.1 as u64) } {
        0 => Ok(true),
        -1 => Err(SysError::last("kcmp")),
        _ => Ok(false), // It puts them in an order.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn who_gives_way_does_so_alone() {
        // SAFETY: It asks how the calling thread is scheduled, and has no memory of ours.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        // SAFETY: Likewise.
        let scheduled = move || (policy(), unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) });
        let before = scheduled();
        let there = std::thread::spawn(move || {
            give_way();
            scheduled()
        });
        assert_eq!((there.join().unwrap(), scheduled()), ((libc::SCHED_BATCH, NICEST), before));
    }

    #[test]
    fn a_child_keeps_what_it_was_told_to_and_nothing_else() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        let number = theirs.as_raw_fd();
        let forked = fork(vec![theirs.into()], |mut kept| {
            let closed = rustix::io::fcntl_getfd(&other) == Err(rustix::io::Errno::BADF);
            let mut theirs = UnixStream::from(kept.pop().unwrap());
            theirs.write_all(&[u8::from(closed)]).unwrap();
            let _ = theirs.read(&mut [0]); // Until it was looked at.
            exit_now() // A test harness's destructors are not its to run.
        });
        let (child, kept) = forked.unwrap();
        let mut answer = [0];
        ours.read_exact(&mut answer).unwrap();
        let ourselves = rustix::process::getpid();
        let is_kept = is_one_file((ourselves, kept[0].as_raw_fd()), (child, number));
        let is_confused = is_one_file((ourselves, ours.as_raw_fd()), (child, number));
        ours.write_all(&[0]).unwrap();
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(answer, [1], "a descriptor that was not kept is closed");
        assert!(is_kept.unwrap(), "one that was kept is the parent's");
        assert!(!is_confused.unwrap());
    }

    #[test]
    fn a_child_that_panics_does_not_return_to_its_parents_frames() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let caught = std::panic::catch_unwind(|| fork(vec![theirs.into()], |_| panic!("on purpose")));
        // Only the parent gets here: a child that did would hold the other end open, and this would wait for it.
        let (child, kept) = caught.unwrap().unwrap();
        drop(kept);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        let status = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(status.unwrap().1.exit_status(), Some(1));
    }
}
