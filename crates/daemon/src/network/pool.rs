//! Namespaces that are ready, and the one thread that makes them.

use super::NetworkError;
use super::host::Host;
use super::make::{Maker, Namespace};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tokio::sync::oneshot;

/// How many namespaces are kept ready.
pub const READY: usize = 8;

/// Namespaces that are ready. Its thread ends with it, and with the thread all that nobody took.
pub(super) struct Pool {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    host: Host,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Somebody waits, something was taken, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Namespace>,
    waiting: VecDeque<oneshot::Sender<Result<Namespace, NetworkError>>>,
    /// The last attempt failed, and nobody asked since: it is not repeated for nobody.
    is_failing: bool,
    is_over: bool,
}

impl Pool {
    pub(super) fn new(host: Host) -> Self {
        Self { shared: Arc::default(), thread: Mutex::new(None), host }
    }

    /// One that is ready, or else the next that is made.
    pub(super) async fn take(&self) -> Result<Namespace, NetworkError> {
        let waiting = {
            let mut state = self.shared.lock();
            let taken = state.ready.pop_front();
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
        let made = self.take().await?;
        self.shared.lock().ready.push_front(made);
        Ok(())
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// Lets the thread look at what there is to do. The first call starts it, in the namespace of the caller.
    pub(super) fn wake(&self) -> Result<(), NetworkError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.lock().is_over {
            return Err(NetworkError::Over);
        }
        if thread.is_none() {
            let maker = Maker::new(self.host.clone())?;
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new().name("networks".into()).spawn(move || shared.serve(maker));
            *thread = Some(spawned.map_err(NetworkError::Thread)?);
        }
        self.shared.changed.notify_one();
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
        self.shared.changed.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that makes networks panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || (self.ready.len() < READY && !self.is_failing)
    }

    /// Gives what was made to the first who still waits.
    fn give(&mut self, made: Result<Namespace, NetworkError>) {
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

    /// What the thread does.
    fn serve(&self, mut maker: Maker) {
        loop {
            let mut state = self.lock();
            while !state.has_work() && !state.is_over {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.is_over {
                break;
            }
            drop(state);
            let made = maker.make();
            self.lock().give(made);
        }
        let unused = std::mem::take(&mut self.lock().ready);
        if let Err(error) = maker.retire(unused.into()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot take the host's rules away");
        }
    }
}
