//! Many children of one fork: the first comes to life alone where nobody knows yet what they write.
//!
//! ```text
//! first   Start ─► runs ─► is adopted ─ what has it written? ─┐
//! others  born ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ┴─► Expect, Start ─► …
//! ```
//!
//! Each of them faults on every page that it touches before it is adopted, unless it is told which it will write. Where there are
//! CPUs for all, this is done at the same time, and nobody waits for another; where there are not, each of these faults makes
//! all others later.
//!
//! All are born at once and wait for their `Start`: the parent pauses no longer for it.

use super::Fleet;
use pando_wire::control::WorkingSet;
use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Up to so many children for each CPU of the host, nobody waits.
const PER_CPU: usize = 4;
/// How long the others wait for the first.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the others of a burst stand.
#[derive(Debug, Clone)]
enum Others {
    Wait,
    /// And are told to expect these, if there is anything to tell.
    Start(Option<WorkingSet>),
}

/// The children of one fork.
#[derive(Debug)]
pub(super) struct Burst(watch::Sender<Others>);

impl Burst {
    /// Of so many.
    pub(super) fn of(children: usize) -> Self {
        let few = PER_CPU * available_parallelism().map_or(1, NonZero::get);
        Self(watch::Sender::new(if children > few { Others::Wait } else { Others::Start(None) }))
    }

    /// The fork has told how much it expects of them.
    pub(super) fn expects(&self, pages: u32) {
        if pages > 0 {
            self.start(None);
        }
    }

    fn waits(&self) -> bool {
        matches!(*self.0.borrow(), Others::Wait)
    }

    fn start(&self, pages: Option<WorkingSet>) {
        self.0.send_replace(Others::Start(pages));
    }

    async fn lesson(&self) -> Option<WorkingSet> {
        let mut others = self.0.subscribe();
        let start = others.wait_for(|others| matches!(others, Others::Start(_)));
        match timeout(PATIENCE, start).await.ok()?.ok()?.clone() {
            Others::Start(pages) => pages,
            Others::Wait => None,
        }
    }
}

impl Fleet {
    /// For the first of a burst, when it runs or has failed: the others may start.
    pub(super) async fn teach(&self, burst: &Burst, first: &str) {
        if burst.waits() {
            let written = self.written_by(first).await;
            tracing::debug!(vm = first, pages = written.as_ref().map(WorkingSet::pages), "the first of a burst");
            burst.start(written);
        }
    }

    /// For any other: waits until it may start, and has it know what the first has written.
    pub(super) async fn be_taught(&self, burst: &Burst, id: &str) {
        if let Some(pages) = burst.lesson().await {
            self.expect_of(id, pages).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_wait_only_where_they_are_many_and_nothing_is_expected() {
        let many = Burst::of(usize::MAX);
        many.expects(0);
        assert!(many.waits());
        many.expects(9);
        assert!(!many.waits(), "the parent was taught before");
        assert!(!Burst::of(PER_CPU).waits(), "there is a CPU for each");
    }
}
