//! Finding the checkpoints of an earlier daemon: seeds outlive it, and what is stored does anyway.

use super::super::Fleet;
use super::super::error::FleetError;
use super::store::Kept;
use crate::db::{Checkpoint, Kind, Outcome, Sizes};
use crate::monitor::{Monitor, MonitorError};
use crate::supervisor::Process;
use futures_util::future::join_all;
use pando_wire::api::CheckpointState;
use pando_wire::control::{Phase, Request};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a seed may take to say that it is there.
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts to reach one that does not.
const PAUSE: Duration = Duration::from_secs(5);

/// What became of a seed.
enum Found {
    /// It is there, and is looked after.
    Alive,
    /// Nobody listens on its socket.
    Gone,
    /// It is there, and does not answer in time, or in another language. It is left alone.
    Silent(MonitorError),
}

impl Fleet {
    /// Takes over every seed that lives, has those saved that are not stored, and removes checkpoints of which nothing is
    /// left: an earlier daemon was killed before they were stored, and then their seeds ended. From then on seeds that nobody
    /// uses end.
    pub(in crate::fleet) async fn adopt_checkpoints(&self) -> Result<(), FleetError> {
        let checkpoints = self.0.db.checkpoints().await?;
        let mut known = self.0.db.sleeps().await?;
        known.extend(checkpoints.iter().map(|checkpoint| checkpoint.id.clone()));
        self.unstore_strays(known).await?;
        let settled = join_all(checkpoints.into_iter().map(|checkpoint| self.settle_checkpoint(checkpoint))).await;
        tokio::spawn(self.clone().shed_seeds());
        settled.into_iter().collect()
    }

    async fn settle_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), FleetError> {
        if let Some(error) = self.adopt_checkpoint(&checkpoint).await? {
            tracing::warn!(checkpoint = checkpoint.id, %error, "its seed cannot be taken over; it is asked again");
            tokio::spawn(self.clone().ask_seed_again(checkpoint.id));
        }
        Ok(())
    }

    /// Asks the seed of checkpoint `id` until it answers, or until that no longer matters.
    async fn ask_seed_again(self, id: String) {
        let mut closing = self.0.closing.clone();
        loop {
            tokio::select! {
                () = sleep(PAUSE) => (),
                _ = closing.wait_for(|over| *over) => return,
            }
            let _turn = self.0.turns.vm(&id).await;
            let adopted = match self.0.db.checkpoint(&id).await {
                Ok(Some(checkpoint)) => self.adopt_checkpoint(&checkpoint).await,
                Ok(None) => return, // It was removed.
                Err(error) => Err(error.into()),
            };
            match adopted {
                Ok(None) => return,
                Ok(Some(_)) => (),
                Err(error) => tracing::error!(checkpoint = id, error = error.in_one_line(), "cannot take it over"),
            }
        }
    }

    /// Finds out about one checkpoint. The answer is why its seed could not be asked.
    async fn adopt_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Option<MonitorError>, FleetError> {
        let kept = self.kept(&checkpoint.id).await?;
        let found = self.take_over_seed(checkpoint).await;
        let stored = Outcome::Stored(Sizes::default());
        match (kept, checkpoint.state) {
            (Kept::Whole, CheckpointState::Saving | CheckpointState::Failed) => {
                self.0.db.checkpoint_became(checkpoint, stored).await?;
            }
            (Kept::Absent, CheckpointState::Stored) => {
                let problem = "it is no longer in the store";
                self.0.db.checkpoint_became(checkpoint, Outcome::Failed { problem }).await?;
            }
            // As it was.
            _ => (),
        }
        match (found, kept) {
            (Found::Silent(error), _) => return Ok(Some(error)),
            (Found::Alive, Kept::Whole) => (),
            (Found::Alive, Kept::Absent) => {
                self.0.db.checkpoint_became(checkpoint, Outcome::Saving).await?;
                self.begin_to_save(checkpoint);
            }
            (Found::Gone, Kept::Whole) => self.0.supervisor.put_seed_away(&checkpoint.id, checkpoint.epoch).await,
            (Found::Gone, Kept::Absent) => self.remove_lost(checkpoint).await?,
        }
        Ok(None)
    }

    /// Removes a checkpoint that is neither in memory nor in the store.
    async fn remove_lost(&self, checkpoint: &Checkpoint) -> Result<(), FleetError> {
        tracing::warn!(checkpoint = checkpoint.id, name = checkpoint.name, "it was not stored, and its seed is gone");
        let detail = format!("{}: its seed ended before it was stored, and it is removed", checkpoint.name);
        self.forget(checkpoint).await?;
        Ok(self.0.db.record(&checkpoint.vm, Kind::Unstored, &detail).await?)
    }

    /// Begins to look after the seed of `checkpoint`, if it answers.
    async fn take_over_seed(&self, checkpoint: &Checkpoint) -> Found {
        let monitor = match Monitor::connect(&self.0.paths.control_socket(&checkpoint.id)) {
            Ok(monitor) => Arc::new(monitor),
            Err(MonitorError::Connect(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Found::Gone;
            }
            Err(error) => return Found::Silent(error),
        };
        let asked = async {
            let status = monitor.status().await?;
            if status.phase != Phase::Created {
                return Err(MonitorError::Confused);
            }
            monitor.send(&Request::Watch, &[]).await?;
            let process = Process::hold(status.pid).map_err(MonitorError::Process)?;
            tracing::info!(checkpoint = checkpoint.id, name = checkpoint.name, pid = status.pid, "adopted a seed");
            self.0.supervisor.supervise_seed(&checkpoint.id, checkpoint.epoch, process, Arc::clone(&monitor));
            Ok(())
        };
        match timeout(STATUS_LIMIT, asked).await {
            Ok(Ok(())) => Found::Alive,
            Ok(Err(error)) => Found::Silent(error),
            Err(_) => Found::Silent(MonitorError::Late(STATUS_LIMIT)),
        }
    }
}
