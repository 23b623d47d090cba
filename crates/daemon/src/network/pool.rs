//! Namespaces that are ready, and the threads that make them.

use super::NetworkError;
use super::demand::Demand;
use super::host::Host;
use super::make::{Maker, Namespace};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tokio::sync::oneshot;

/// How many threads make them.
const MAKERS: usize = 2;

/// Namespaces that are ready. Its threads end with it, and with them all that nobody took.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    host: Host,
}

/// VMs that are about to begin. Until this is dropped, no networks are made but for them and for who waits.
#[derive(Debug)]
#[must_use = "nothing is expected any more when it is dropped"]
pub struct Expected {
    shared: Arc<Shared>,
    count: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Somebody waits, something was taken, or it is over.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Namespace>,
    waiting: VecDeque<oneshot::Sender<Result<Namespace, NetworkError>>>,
    demand: Demand,
    /// How many are being made.
    under_way: usize,
    /// How many threads there are. The last takes away what is left.
    makers: usize,
    /// The last attempt failed, and nobody asked since: it is not repeated for nobody.
    is_failing: bool,
    is_over: bool,
}

impl Pool {
    pub(super) fn new(host: Host) -> Self {
        Self { shared: Arc::default(), threads: Mutex::default(), host }
    }

    /// One that is ready, or else the next that is made.
    pub(super) async fn take(&self) -> Result<Namespace, NetworkError> {
        let waiting = {
            let mut state = self.shared.lock();
            let taken = state.ready.pop_front();
            state.demand.take();
            state.is_failing = false;
            if let Some(namespace) = taken {
                drop(state);
                self.wake()?;
                return Ok(namespace);
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        self.wake()?;
        waiting.await.unwrap_or(Err(NetworkError::Over))
    }

    /// Whether one is ready, or can be made: then that one is.
    pub(super) async fn prove(&self) -> Result<(), NetworkError> {
        if self.ready() > 0 {
            return Ok(());
        }
        let _expected = self.expect(1); // So that it is not one of those that others expect.
        let made = self.take().await?;
        self.shared.lock().ready.push_front(made);
        Ok(())
    }

    /// Begins to make as many more as are not ready for `count` VMs.
    pub(super) fn expect(&self, count: usize) -> Expected {
        {
            let mut state = self.shared.lock();
            state.demand.expect(count, Instant::now());
            state.is_failing = false;
        }
        if let Err(error) = self.wake() {
            // Who takes one hears of it.
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot begin to make networks");
        }
        Expected { shared: Arc::clone(&self.shared), count }
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// Lets the threads look at what there is to do. The first call starts them, in the namespace of the caller.
    pub(super) fn wake(&self) -> Result<(), NetworkError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.lock().is_over {
            return Err(NetworkError::Over);
        }
        if threads.is_empty() {
            for maker in Maker::several(&self.host, MAKERS)? {
                let shared = Arc::clone(&self.shared);
                self.shared.lock().makers += 1;
                let spawned = thread::Builder::new().name("networks".into()).spawn(move || shared.serve(maker));
                match spawned {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        self.shared.lock().makers -= 1;
                        return Err(NetworkError::Thread(error));
                    }
                }
            }
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Ends it: what is ready goes, and the host's table with it if no VM needs it. Blocks until that is done, for some tenths
    /// of a second.
    pub(super) fn close(&self) {
        {
            let mut state = self.shared.lock();
            state.is_over = true;
            state.waiting.clear();
        }
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that makes networks panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.shared.lock().demand.settle(self.count);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn has_work(&self, now: Instant) -> bool {
        let for_later = if self.is_failing { 0 } else { self.demand.wanted(now) };
        self.ready.len() + self.under_way < self.waiting.len() + for_later
    }

    /// What is ready and has been kept long enough for a burst that did not come.
    fn surplus(&mut self, now: Instant) -> VecDeque<Namespace> {
        let kept = self.demand.kept(now).max(self.demand.wanted(now));
        self.ready.split_off(kept.min(self.ready.len()))
    }

    /// Gives what was made to the first who still waits; a failure only where no other thread is making one for them.
    fn give(&mut self, made: Result<Namespace, NetworkError>) {
        if made.is_err() && self.waiting.len() <= self.under_way && self.under_way > 0 {
            self.is_failing = true;
            return;
        }
        let mut made = made;
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(made) {
                Ok(()) => return,
                Err(back) => made = back, // They went away.
            }
        }
        match made {
            // Also when it is over: the thread waits for the end of all that is here.
            Ok(namespace) => self.ready.push_back(namespace),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot keep networks ready");
                self.is_failing = true;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn serve(&self, mut maker: Maker) {
        while self.wait_for_work() {
            let made = maker.make();
            let mut state = self.lock();
            state.under_way -= 1;
            state.give(made);
        }
        let unused = {
            let mut state = self.lock();
            state.makers -= 1;
            match state.makers {
                0 => std::mem::take(&mut state.ready),
                _ => return, // Another one may still be making one.
            }
        };
        if let Err(error) = maker.retire(unused.into()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot take the host's rules away");
        }
    }

    /// Waits until one is to be made, which is the caller's to do then; false when it is over.
    fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.is_over {
                return false;
            }
            if state.has_work(now) {
                state.under_way += 1;
                return true;
            }
            let surplus = state.surplus(now);
            if !surplus.is_empty() {
                drop(state);
                drop(surplus); // The kernel takes its time.
                state = self.lock();
                continue;
            }
            state = match state.demand.holds(now) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(time) => self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}
