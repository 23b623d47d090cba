//! Threads of a process that forks: none begins or ends at a `fork(2)`.
//!
//! A thread takes locks when it begins and when it ends, which nobody sees who writes one: of the standard library, which
//! keeps a list of stacks for its message about an overflow, and of the C library. A child inherits a lock as it is, and the
//! thread that holds it does not exist there: each thread that the child starts would wait for it, for ever.
//!
//! ```text
//! spawn ──► beginning ──► living ──► leaving ──► gone
//!               └────────────────────────┴─ a fork waits until there are none of these, and lets nobody become one
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle, Thread, ThreadId};

static CREW: Mutex<Option<Crew>> = Mutex::new(None);
/// Nobody begins any more.
static HAVE_BEGUN: Condvar = Condvar::new();

/// The threads that [`spawn`] started, but for those that are known to be gone.
#[derive(Default)]
struct Crew {
    beginning: u32,
    living: HashMap<ThreadId, JoinHandle<()>>,
    leaving: Vec<JoinHandle<()>>,
}

/// Starts a thread. Of a process that calls [`fork`](crate::fork()) every thread is started by this.
pub fn spawn(name: &str, live: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    let mut crew = lock();
    let live = move || {
        begin();
        let _leaving = Leaving;
        live();
    };
    let handle = Builder::new().name(name.to_owned()).spawn(live)?;
    let (crew, thread) = (crew.get_or_insert_default(), handle.thread().clone());
    crew.beginning += 1;
    crew.living.insert(thread.id(), handle);
    Ok(thread)
}

/// Waits for those who begin or leave, as [`fork`](crate::fork()) does: who is to fork soon has them behind it.
pub fn settle() {
    drop(settled());
}

/// For a fork: nobody begins or leaves while the result lives. It is to be [forgotten](Settled::forget) in the child.
pub(crate) fn settled() -> Settled {
    let begins = |crew: &mut Option<Crew>| crew.as_ref().is_some_and(|crew| crew.beginning > 0);
    let mut crew = HAVE_BEGUN.wait_while(lock(), begins).unwrap_or_else(PoisonError::into_inner);
    for thread in crew.iter_mut().flat_map(|crew| crew.leaving.drain(..)) {
        let _ = thread.join(); // That it panicked has been said.
    }
    Settled(crew)
}

pub(crate) struct Settled(MutexGuard<'static, Option<Crew>>);

impl Settled {
    /// In the child none of them exists, nor can be detached.
    pub(crate) fn forget(mut self) {
        std::mem::forget(self.0.take());
    }
}

fn begin() {
    let mut crew = lock();
    if let Some(crew) = crew.as_mut() {
        crew.beginning -= 1;
    }
    drop(crew);
    HAVE_BEGUN.notify_all();
}

/// Dropped by a thread when it has done its work, also by a panic. It takes no lock of ours from then on.
struct Leaving;

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(crew) = lock().as_mut() {
            let own = crew.living.remove(&thread::current().id());
            crew.leaving.extend(own);
        }
    }
}

/// Locks, also after a panic: nothing in there is ever half-done.
fn lock() -> MutexGuard<'static, Option<Crew>> {
    CREW.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork;
    use std::collections::HashSet;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::Duration;

    /// Takes its time when its thread ends.
    struct Slow;

    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    thread_local!(static SLOW: Slow = const { Slow });

    /// Begins and ends, and has another one do so, until it is over.
    fn come_and_go(is_over: &'static AtomicBool, number: u32, is_slow: bool) {
        if is_slow {
            SLOW.with(|_| ());
        }
        if !is_over.load(Relaxed) {
            spawn(&format!("comes-{number}"), move || come_and_go(is_over, number + 1, is_slow)).unwrap();
        }
    }

    /// The threads of this process, as `/proc/self/task` has them, and what they are called: without those that the kernel is
    /// putting away, which have no part in anything any more.
    fn tasks() -> Vec<(String, String)> {
        /// Of the kernel's `sched.h`.
        const EXITING: u32 = 4;
        let task = |path: std::path::PathBuf| {
            let stat = std::fs::read_to_string(path.join("stat")).ok()?;
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let flags: u32 = rest.split_whitespace().nth(6)?.parse().ok()?;
            (flags & EXITING == 0).then(|| (path.display().to_string(), name.to_owned()))
        };
        std::fs::read_dir("/proc/self/task").unwrap().filter_map(|entry| task(entry.unwrap().path())).collect()
    }

    #[test]
    fn nobody_begins_or_ends_at_a_fork() {
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        spawn("comes-0", || come_and_go(&IS_OVER, 1, true)).unwrap();
        for round in 0..500 {
            let settled = settled();
            let before = tasks();
            thread::sleep(Duration::from_millis(4));
            let after = tasks();
            drop(settled);
            assert_eq!(before, after, "round {round}");
            // One that has not begun is still called as whoever started it.
            let names: HashSet<_> = after.iter().map(|task| &task.1).collect();
            assert!(names.len() == after.len() && names.len() > 2, "round {round}: {after:?}");
        }
        IS_OVER.store(true, Relaxed);
    }

    #[test]
    fn a_child_can_start_threads_whoever_began_or_left_in_its_parent() {
        // Where a fork does not wait for them, one of the first few cannot.
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        come_and_go(&IS_OVER, 0, false);
        for round in 0..2000 {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let (child, kept) = fork(vec![theirs.into()], |kept| {
                let (tell, told) = std::sync::mpsc::channel();
                spawn("in-the-child", move || tell.send(()).unwrap()).unwrap();
                let _ = told.recv();
                drop(kept);
            })
            .unwrap();
            drop(kept);
            ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let ended = ours.read(&mut [0]);
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
            rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
            assert_eq!(ended.ok(), Some(0), "round {round}");
        }
        IS_OVER.store(true, Relaxed);
    }
}
