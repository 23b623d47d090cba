//! Who is in a VM, and the door that is closed while it falls asleep.
//!
//! ```text
//! enter ─► the door is open? ─► the agent has answered ─► … ─► Visit ends
//!             └ while it is closed: wait, and look again at what the VM is
//! ```
//!
//! *Invariant.* Behind a closed door nobody waits for an agent's first answer, and nobody who comes is overlooked: they
//! have been noted before they find it closed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// That nobody enters a VM, until it is dropped.
pub(super) type Closed = OwnedRwLockWriteGuard<()>;

/// Every VM that was used since this daemon began.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<HashMap<String, Arc<Place>>>);

/// One VM, as a place to be in.
#[derive(Debug, Default)]
struct Place {
    door: Arc<RwLock<()>>,
    guests: Mutex<Guests>,
    /// Why it does not fall asleep though nobody uses it.
    sleepless: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Guests {
    inside: usize,
    /// When somebody last came, wanted something or went.
    last: Option<Instant>,
}

impl Presence {
    /// Somebody wants something of VM `id`.
    pub(super) fn note(&self, id: &str) {
        self.place(id).note();
    }

    /// Somebody is in VM `id`, as long as the answer lives.
    pub(super) fn stay(&self, id: &str) -> Visit {
        Visit::begin(self.place(id), None)
    }

    /// The same, for who waits for the VM's agent: waits while it falls asleep. It does not until [`Visit::is_heard`].
    pub(super) async fn enter(&self, id: &str) -> Visit {
        let place = self.place(id);
        place.note();
        let open = Arc::clone(&place.door).read_owned().await;
        Visit::begin(place, Some(open))
    }

    /// Waits until nobody is entering VM `id`. Whoever comes then waits until the answer is dropped.
    pub(super) async fn close(&self, id: &str) -> Closed {
        Arc::clone(&self.place(id).door).write_owned().await
    }

    /// The same, unless somebody is entering.
    pub(super) fn try_close(&self, id: &str) -> Option<Closed> {
        Arc::clone(&self.place(id).door).try_write_owned().ok()
    }

    /// When VM `id` was last used, as far as that is known: now, if somebody is in it.
    pub(super) fn last_use(&self, id: &str) -> Option<Instant> {
        let place = self.known(id)?;
        let guests = place.guests();
        if guests.inside > 0 { Some(Instant::now()) } else { guests.last }
    }

    /// Why VM `id` does not fall asleep though nobody uses it.
    pub(super) fn sleepless(&self, id: &str) -> Option<String> {
        self.known(id)?.sleepless.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why, or that it does.
    pub(super) fn tell_sleepless(&self, id: &str, why: Option<String>) {
        *self.place(id).sleepless.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Forgets VMs that are not in `known`.
    pub(super) fn retain(&self, known: &HashSet<&str>) {
        self.lock().retain(|id, place| known.contains(id.as_str()) || Arc::strong_count(place) > 1);
    }

    fn known(&self, id: &str) -> Option<Arc<Place>> {
        self.lock().get(id).cloned()
    }

    fn place(&self, id: &str) -> Arc<Place> {
        Arc::clone(self.lock().entry(id.to_owned()).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Place>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn note(&self) {
        self.guests().last = Some(Instant::now());
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That somebody is in a VM: a program that was run in it, a connection to its agent, memory that still arrives.
#[derive(Debug)]
pub(crate) struct Visit {
    place: Arc<Place>,
    entering: Option<OwnedRwLockReadGuard<()>>,
}

impl Visit {
    fn begin(place: Arc<Place>, entering: Option<OwnedRwLockReadGuard<()>>) -> Self {
        place.guests().inside += 1;
        Self { place, entering }
    }

    /// The agent has answered: the VM may fall asleep from here on, if somebody wants it to.
    pub(crate) fn is_heard(&mut self) {
        self.entering = None;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut guests = self.place.guests();
        guests.inside -= 1;
        guests.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn nobody_enters_through_a_closed_door_and_it_is_not_closed_on_who_enters() {
        let presence = Presence::default();
        let mut visit = presence.enter("a").await;
        assert!(presence.try_close("a").is_none());
        assert!(presence.close("a").now_or_never().is_none());
        visit.is_heard();
        let closed = presence.try_close("a").unwrap();
        assert!(presence.enter("a").now_or_never().is_none());
        assert!(presence.enter("b").now_or_never().is_some());
        drop(closed);
        assert!(presence.enter("a").now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_waits_at_a_closed_door_has_been_noted() {
        let presence = Presence::default();
        let _closed = presence.close("a").await;
        assert_eq!(presence.last_use("a"), None);
        let before = Instant::now();
        assert!(presence.enter("a").now_or_never().is_none());
        assert!(presence.last_use("a").unwrap() >= before);
    }

    #[test]
    fn a_vm_is_used_as_long_as_somebody_is_in_it_and_until_the_last_went() {
        let presence = Presence::default();
        let (first, second) = (presence.stay("a"), presence.stay("a"));
        drop(first);
        let now = Instant::now();
        assert!(presence.last_use("a").unwrap() >= now);
        presence.retain(&HashSet::new());
        assert!(presence.last_use("a").unwrap() >= now, "who is inside is not forgotten");
        drop(second);
        let last = presence.last_use("a").unwrap();
        assert_eq!(presence.last_use("a"), Some(last));
        presence.retain(&HashSet::new());
        assert_eq!(presence.last_use("a"), None);
    }
}
