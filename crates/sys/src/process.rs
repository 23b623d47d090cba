//! `fork(2)`, and what a child may keep.

use crate::SysError;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The one that asked; the child has this process id.
    Parent(Pid),
    /// The copy.
    Child,
}

/// Copies this process. In the child only the calling thread exists, and only the standard descriptors and `keep` are
/// open.
///
/// Every other thread must stand at a known point, holding no lock that the child will want. In the child, whoever owns
/// a descriptor that is not in `keep` must forget that owner (`std::mem::forget`) instead of dropping it: the number
/// is closed, and may soon be somebody else's. glibc sees to its own locks, the allocator's among them.
pub fn fork(keep: &[BorrowedFd<'_>]) -> Result<Forked, SysError> {
    // SAFETY: Other threads stand still, so the child starts from a state in which no lock is held half-way; see above.
    match unsafe { libc::fork() } {
        -1 => Err(SysError::last("fork")),
        0 => {
            close_all_but(keep);
            Ok(Forked::Child)
        }
        child => Ok(Forked::Parent(Pid::from_raw(child).ok_or_else(|| SysError::last("fork"))?)),
    }
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

/// Closes every descriptor above the standard ones that is not in `keep`.
fn close_all_but(keep: &[BorrowedFd<'_>]) {
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
    // SAFETY: The owners of these descriptors are forgotten, as `fork` requires, so none is used after this. It can
    // fail only on a kernel before 5.9, which KVM's own requirements here exclude.
    unsafe { libc::close_range(first, last, 0) };
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
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_child_keeps_what_it_was_told_to_and_nothing_else() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        match fork(&[theirs.as_fd()]).unwrap() {
            Forked::Child => {
                let closed = rustix::io::fcntl_getfd(other.as_fd()) == Err(rustix::io::Errno::BADF);
                theirs.write_all(&[u8::from(closed)]).unwrap();
                let _ = theirs.read(&mut [0]); // Until it was looked at.
                // SAFETY: Ends the child at once, as a test harness's destructors are not its to run.
                unsafe { libc::_exit(0) }
            }
            Forked::Parent(child) => {
                let mut answer = [0];
                ours.read_exact(&mut answer).unwrap();
                let ourselves = rustix::process::getpid();
                let fd = |stream: &UnixStream| (ourselves, stream.as_raw_fd());
                let is_kept = is_one_file(fd(&theirs), (child, theirs.as_raw_fd()));
                let is_confused = is_one_file(fd(&ours), (child, theirs.as_raw_fd()));
                ours.write_all(&[0]).unwrap();
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
                assert_eq!(answer, [1], "a descriptor that was not kept is closed");
                assert!(is_kept.unwrap(), "one that was kept is the parent's");
                assert!(!is_confused.unwrap());
            }
        }
    }
}
