//! VMs that nobody uses hibernate by themselves.
//!
//! Use is: whoever is in a VM ([`Presence`](super::presence::Presence)), an operation on it, and, above a small share, CPU
//! time of its monitor and what comes for it from outside. One task looks at all VMs, a few times within the shortest timeout that there is. What it
//! decides is looked at once more when nobody can come in any more. The clock of a VM begins anew with its process and
//! with this daemon.

mod clock;
mod received;

use super::Fleet;
use super::error::FleetError;
use crate::db::Record;
use crate::usage;
use clock::{Clock, Counted};
use pando_wire::api::State;
use received::Received;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often all VMs are looked at: so many times within the shortest timeout, within these bounds.
const LOOKS: u32 = 5;
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How many fall asleep at a time: each is forked, read and written to the store.
const AT_ONCE: usize = 2;

/// What came of a decision.
enum Outcome {
    Asleep,
    /// It was used after all, or something goes on with it.
    Used,
    Failed(FleetError),
}

/// What the task knows.
struct Watch {
    clocks: HashMap<String, Clock>,
    /// VMs that were decided on, and what comes of it.
    decided: HashSet<String>,
    falling: JoinSet<(String, Outcome)>,
    room: Arc<Semaphore>,
}

impl Fleet {
    /// Puts VMs to sleep that nobody uses, until the daemon ends. Those that fall asleep then do so to the end.
    pub(crate) async fn watch_idle(self) {
        let mut watch = Watch {
            clocks: HashMap::new(),
            decided: HashSet::new(),
            falling: JoinSet::new(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        };
        let (mut shutdown, mut settings) = (self.0.shutdown.clone(), self.0.settings.watch());
        loop {
            let pause = self.look(&mut watch).await;
            tokio::select! {
                () = sleep(pause) => (),
                // Its sender is in the fleet.
                _ = settings.changed() => (),
                Some(Ok((id, outcome))) = watch.falling.join_next() => self.note_outcome(&mut watch, &id, outcome),
                _ = shutdown.wait_for(|over| *over) => break,
            }
        }
        watch.room.close();
        while watch.falling.join_next().await.is_some() {}
    }

    /// Looks at every VM. The answer is how long it takes until that is worth it again.
    async fn look(&self, watch: &mut Watch) -> Duration {
        let vms = match self.0.db.vms().await {
            Ok(vms) => vms,
            Err(error) => {
                tracing::error!(%error, "cannot see which VMs are idle");
                return PAUSES.1;
            }
        };
        self.0.presence.retain(&vms.iter().map(|vm| vm.id.as_str()).collect());
        let default = self.0.settings.now().idle_timeout;
        let mut pause = PAUSES.1;
        let mut counted = HashMap::new();
        let received = self.received(&vms).await;
        for (vm, timeout) in vms.iter().filter_map(|vm| Some((vm, timeout_of(vm, default)?))) {
            pause = pause.min(timeout / LOOKS);
            let Some((clock, idle)) = self.count(vm, watch.clocks.remove(&vm.id), &received).await else { continue };
            let is_due = idle >= timeout && clock.is_rested(Instant::now());
            if is_due && watch.decided.insert(vm.id.clone()) {
                let (fleet, id, clock, room) = (self.clone(), vm.id.clone(), clock.clone(), Arc::clone(&watch.room));
                watch.falling.spawn(async move {
                    // The daemon ends if there is none.
                    let Ok(_seat) = room.acquire().await else { return (id, Outcome::Used) };
                    let vm = id.clone();
                    // In a task that goes on when nobody waits for it any more.
                    let task = tokio::spawn(async move { fleet.put_idle_to_sleep(&vm, clock, timeout).await });
                    (id, task.await.unwrap_or(Outcome::Failed(FleetError::CutShort)))
                });
            }
            counted.insert(vm.id.clone(), clock);
        }
        // Those that are not looked at begin anew.
        watch.clocks = counted;
        pause.max(PAUSES.0)
    }

    fn note_outcome(&self, watch: &mut Watch, id: &str, outcome: Outcome) {
        watch.decided.remove(id);
        if let Outcome::Failed(error) = outcome {
            if let Some(clock) = watch.clocks.get_mut(id) {
                clock.failed(Instant::now());
            }
            self.0.presence.tell_sleepless(id, Some(error.in_one_line()));
        }
    }

    /// The clock of `vm`, and how long nobody has used that, when so much was `received` by each link. `None` if it is none
    /// that could fall asleep now.
    async fn count(&self, vm: &Record, clock: Option<Clock>, received: &Received) -> Option<(Clock, Duration)> {
        if vm.state != State::Running || self.0.foreign.check(vm).is_err() {
            return None;
        }
        let live = self.0.supervisor.live(&vm.id)?;
        let pid = live.pid();
        let clock = clock.filter(|clock| clock.pid == pid);
        let link = match &clock {
            Some(clock) => clock.link.clone(),
            None => self.link_to(vm, live).await,
        };
        let received = link.as_ref().and_then(|link| received.get(link)).copied().unwrap_or_default();
        // It may have ended just now.
        let counted = Counted { cpu: usage::cpu_of_process(pid).ok()?, received };
        let now = Instant::now();
        let mut clock = clock.unwrap_or_else(|| Clock::new(pid, link, now, counted));
        if let Some(when) = self.0.presence.last_use(&vm.id) {
            clock.used(when);
        }
        let idle = clock.read(now, counted);
        Some((clock, idle))
    }

    /// Has VM `id` hibernate, unless it turns out that it was used.
    async fn put_idle_to_sleep(&self, id: &str, clock: Clock, timeout: Duration) -> Outcome {
        let Some(_turn) = self.0.turns.try_vm(id) else {
            self.0.presence.note(id);
            return Outcome::Used;
        };
        // From here on whoever comes waits, and has been noted.
        let Some(closed) = self.0.presence.try_close(id) else { return Outcome::Used };
        let vm = match self.0.db.vm(id).await {
            Ok(Some(vm)) => vm,
            Ok(None) => return Outcome::Used,
            Err(error) => return Outcome::Failed(error.into()),
        };
        let pid = clock.pid;
        let received = self.received(std::slice::from_ref(&vm)).await;
        match self.count(&vm, Some(clock), &received).await {
            Some((clock, idle)) if clock.pid == pid && idle >= timeout => (),
            _ => return Outcome::Used,
        }
        tracing::info!(vm = id, name = vm.name, timeout_ms = timeout.as_millis(), "nobody uses it");
        match self.lay_down(&vm, "idle", closed).await {
            Ok(()) => Outcome::Asleep,
            Err(error) => Outcome::Failed(error),
        }
    }
}

/// After how long without use `vm` hibernates, if it does at all; `default` is what the settings say.
fn timeout_of(vm: &Record, default: Option<Duration>) -> Option<Duration> {
    match vm.idle_timeout_ms {
        None => default,
        Some(0) => None,
        Some(ms) => Some(Duration::from_millis(ms)),
    }
}
