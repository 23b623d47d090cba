//! A twin becomes itself, or a VM that slept: a monitor has been told to be it, its agent answers, and is told who it is.

use super::boot::random;
use super::error::FleetError;
use super::guest::identity;
use super::{Fleet, launch, wrong_state};
use crate::agent::{Adopted, Agent};
use crate::db::{Change, Record};
use crate::supervisor::Live;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::ChildReport;
use pando_wire::control::{Response, StartTimings};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a twin's fork hooks may take.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);

/// A VM whose monitor was sent its `Start`.
pub(super) struct Twin {
    pub(super) record: Record,
    pub(super) live: Arc<Live>,
    /// What the monitor says to it.
    pub(super) answered: oneshot::Receiver<Response>,
    /// When somebody asked for it.
    pub(super) arrival: Instant,
    /// How it came to be, in a word.
    pub(super) origin: &'static str,
}

impl Fleet {
    /// Waits until `twin` runs, answers within `limit` from then on, and knows who it is. `files` are its own until it
    /// runs, `answering` until it has answered or will not. After an error it may still run.
    pub(super) async fn welcome<F, A>(
        &self,
        twin: Twin,
        limit: Duration,
        files: F,
        answering: A,
    ) -> Result<ChildReport, FleetError> {
        let inner = &self.0;
        let Twin { record, live, answered, arrival, origin } = twin;
        let vsock = inner.paths.vsock_socket(&record.id);
        let monitored = Change::Monitored { pid: live.pid() };
        let written = async { Ok(inner.db.change(&record.id, record.epoch, monitored).await?) };
        let ready = async {
            let started = launch::started(answered).await;
            let timings =
                started.map_err(|source| FleetError::Monitor { name: record.name.clone(), wanted: "start", source })?;
            let runs = Instant::now();
            drop(files); // They are the monitor's now.
            self.let_run(&record).await?;
            let answer = Agent::reach(&vsock, &AgentRequest::Ping, limit).await;
            let (ready_us, agent_us) = (micros(arrival.elapsed()), micros(runs.elapsed()));
            answer
                .map(|_| (timings, ready_us, agent_us))
                .map_err(|source| FleetError::Agent { name: record.name.clone(), source })
        };
        let died = |ending| FleetError::Boot {
            name: record.name.clone(),
            reason: format!("it {ending}"),
            console: Vec::new(),
        };
        let (_, (timings, ready_us, agent_us)) = tokio::select! {
            ready = async { tokio::try_join!(written, ready) } => ready?,
            ending = launch::ended(&live) => return Err(died(ending)),
        };
        drop(answering);

        self.set_clock(&record).await?;
        let answered = Instant::now();
        let adopt = Agent::adopt(&vsock, identity(&record), random()?, ADOPT_LIMIT);
        let adopted = tokio::select! {
            adopted = adopt => adopted,
            ending = launch::ended(&live) => return Err(died(ending)),
        };
        // If it does not answer, perhaps it does not know who it is, and a twin that thinks it is its parent must not run.
        let Adopted { reseeded, failure } =
            adopted.map_err(|source| FleetError::Agent { name: record.name.clone(), source })?;
        let adopt_us = micros(answered.elapsed());
        let is_running = inner.db.change(&record.id, record.epoch, Change::Running { detail: origin }).await?;
        if !is_running {
            return Err(wrong_state(&self.find(&record.id).await?, "use"));
        }
        Ok(ChildReport {
            name: record.name,
            id: Some(record.id),
            ready_us: Some(ready_us),
            phases_us: phases(&timings, agent_us, adopt_us),
            reseeded: Some(reseeded),
            // What its hooks did not do is for its owner to see, in the child.
            error: failure.map(|failure| failure.message),
        })
    }
}

/// What is told of a twin that does not run.
pub(super) fn failure(name: String, error: &FleetError) -> ChildReport {
    let error = Some(error.in_one_line());
    ChildReport { name, id: None, ready_us: None, phases_us: BTreeMap::new(), reseeded: None, error }
}

fn phases(timings: &StartTimings, agent_us: u64, adopt_us: u64) -> BTreeMap<String, u64> {
    let StartTimings { total_us, seed_us, wait_us, create_vm_us, memory_us, copy_us, map_us, vcpus_us, devices_us } =
        *timings;
    [
        ("total", total_us),
        ("agent", agent_us),
        ("adopt", adopt_us),
        ("seed", seed_us),
        ("wait", wait_us),
        ("create_vm", create_vm_us),
        ("memory", memory_us),
        ("copy", copy_us),
        ("map", map_us),
        ("vcpus", vcpus_us),
        ("devices", devices_us),
    ]
    .map(|(phase, us)| (phase.to_owned(), us))
    .into()
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
