//! What children of a VM write first: learned from one of them, expected of those after it.
//!
//! ```text
//! fork ─► child is ready ─► what has it written? ─► the parent's monitor, which the next children inherit it from
//!                           … and again once its first program has ended
//! ```
//!
//! Of a fork into many the first teaches its own siblings, too: [`burst`](super::burst).
//!
//! Nothing depends on it: a child of which nothing is expected faults as it goes. Only the answer to a fork for
//! which nothing was expected waits for it, so that what comes next finds it learned, and not for long: a host that is busy
//! with the children of that fork lets its monitors answer later.

use super::Fleet;
use crate::monitor::{Monitor, MonitorError, SHORT};
use pando_wire::control::{Request, Response, WorkingSet};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long the answer to such a fork waits.
const PATIENCE: Duration = Duration::from_millis(500);

/// VMs of which there is something to learn yet, and whose children it will be expected of.
#[derive(Debug, Default)]
pub(crate) struct Lessons(Mutex<HashMap<String, String>>);

impl Lessons {
    fn give(&self, pupil: &str, parent: &str) {
        self.lock().insert(pupil.to_owned(), parent.to_owned());
    }

    fn take(&self, pupil: &str) -> Option<String> {
        self.lock().remove(pupil)
    }

    /// The VM `id` is gone, whichever of the two it was.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().retain(|pupil, parent| pupil != id && parent != id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing was learned.
#[derive(Debug, thiserror::Error)]
enum LearnError {
    #[error("cannot read the page tables of its monitor")]
    Pagemap(#[from] io::Error),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

impl Fleet {
    /// `child` is ready, the first of its parent. What it has written until now is expected of its siblings, and once
    /// it has run a program, what it has written until then.
    pub(super) async fn learn_first(&self, parent: &str, child: &str) {
        let (fleet, parent, child) = (self.clone(), parent.to_owned(), child.to_owned());
        let lesson = tokio::spawn(async move {
            fleet.learn(&parent, &child).await;
            fleet.0.lessons.give(&child, &parent);
            if fleet.0.supervisor.live(&child).is_none() {
                fleet.0.lessons.forget(&child); // It went before it had one to be forgotten.
            }
        });
        // When this is over the task goes on.
        let _ = timeout(PATIENCE, lesson).await;
    }

    /// A program in the VM `id` has ended.
    pub(crate) fn program_ended(&self, id: &str) {
        if let Some(parent) = self.0.lessons.take(id) {
            let (fleet, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move { fleet.learn(&parent, &id).await });
        }
    }

    async fn learn(&self, parent: &str, child: &str) {
        if let Err(error) = self.try_learn(parent, child).await {
            cannot_learn(child, &error);
        }
    }

    async fn try_learn(&self, parent: &str, child: &str) -> Result<(), LearnError> {
        let Some(pages) = self.ask_what_was_written(child).await? else { return Ok(()) };
        tracing::debug!(vm = child, pages = pages.pages(), "learned what its siblings will write");
        self.tell_to_expect(parent, pages).await
    }

    /// What `child` has written until now, if that can be told soon.
    pub(super) async fn written_by(&self, child: &str) -> Option<WorkingSet> {
        match timeout(PATIENCE, self.ask_what_was_written(child)).await.ok()? {
            Ok(written) => written,
            Err(error) => {
                cannot_learn(child, &error);
                None
            }
        }
    }

    /// Has `pages` expected of VM `id`, which waits for its `Start`.
    pub(super) async fn expect_of(&self, id: &str, pages: WorkingSet) {
        if let Err(error) = self.tell_to_expect(id, pages).await {
            cannot_learn(id, &error);
        }
    }

    async fn ask_what_was_written(&self, child: &str) -> Result<Option<WorkingSet>, LearnError> {
        let Some(live) = self.0.supervisor.live(child) else { return Ok(None) };
        let pagemap = File::open(format!("/proc/{}/pagemap", live.pid()))?;
        let monitor = Monitor::connect(&self.0.paths.control_socket(child))?;
        match monitor.call(&Request::Touched, &[pagemap.as_fd()], SHORT).await? {
            Response::Touched(pages) => Ok(Some(pages).filter(|pages| !pages.0.is_empty())),
            _ => Err(MonitorError::Confused.into()),
        }
    }

    async fn tell_to_expect(&self, id: &str, pages: WorkingSet) -> Result<(), LearnError> {
        let monitor = Monitor::connect(&self.0.paths.control_socket(id))?;
        Ok(monitor.order(&Request::Expect(pages)).await?)
    }
}

fn cannot_learn(vm: &str, error: &LearnError) {
    tracing::info!(vm, %error, "cannot learn what its siblings will write");
}
