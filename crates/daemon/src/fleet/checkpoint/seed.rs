//! From a VM to a process that keeps its memory: a fork with one child, which is not started.

use super::super::error::{FleetError, cannot};
use super::super::fork::{longest_gap, raise_barrier};
use super::super::{Fleet, blocking, launch};
use crate::db::{Checkpoint, Record};
use crate::monitor::{Monitor, MonitorError};
use crate::paths::{create_private, remove};
use crate::supervisor::Process;
use pando_wire::control::{Listener, Request};
use std::sync::Arc;
use tokio::sync::mpsc;

impl Fleet {
    /// Forks `vm` into the seed of `checkpoint`, and looks after that. The answer is for how long the VM stood still, in
    /// microseconds. After an error the seed may live.
    pub(super) async fn sow(&self, vm: &Record, checkpoint: &Checkpoint) -> Result<u64, FleetError> {
        let control = self.listen_for_seed(&checkpoint.id).await?;
        let programs = self.programs(vm);
        let barrier = match &programs {
            Some(socket) => raise_barrier(socket).await,
            None => None,
        };
        let forked = self.ask_for_fork(vm, vec![control]).await;
        drop(barrier); // Its programs go on.
        // Its heart was started with the barrier, and nobody asks how long it missed.
        let (_, nobody_answers) = mpsc::channel(1);
        let (_, held) = tokio::join!(longest_gap(programs.as_deref(), nobody_answers), async {
            match forked {
                Ok(timings) => self.hold_seed(checkpoint).await.map(|()| timings.pause_us),
                Err(error) => Err(error),
            }
        });
        held
    }

    /// Binds the control socket of a seed.
    pub(super) async fn listen_for_seed(&self, id: &str) -> Result<Listener, FleetError> {
        let (sockets, path) = (self.0.paths.sockets(id), self.0.paths.control_socket(id));
        blocking(move || {
            remove(&sockets)
                .and_then(|()| create_private(&sockets))
                .map_err(cannot(format!("create {}", sockets.display())))?;
            Listener::bind(&path).map_err(cannot(format!("listen on {}", path.display())))
        })
        .await
    }

    /// Takes hold of a seed that was just forked.
    async fn hold_seed(&self, checkpoint: &Checkpoint) -> Result<(), FleetError> {
        let failed =
            |source| FleetError::Monitor { name: checkpoint.vm_name.clone(), wanted: "keep a fork of", source };
        let (process, monitor) = self.newborn_seed(&checkpoint.id).await.map_err(failed)?;
        self.0.supervisor.supervise_seed(&checkpoint.id, checkpoint.epoch, process, monitor);
        Ok(())
    }

    /// The process of a seed that was just forked, and a connection that hears of its end.
    pub(super) async fn newborn_seed(&self, id: &str) -> Result<(Process, Arc<Monitor>), MonitorError> {
        let monitor = Arc::new(Monitor::connect(&self.0.paths.control_socket(id))?);
        monitor.send(&Request::Watch, &[]).await?;
        monitor.send(&Request::Status, &[]).await?;
        Ok((launch::born(&monitor).await?, monitor))
    }
}
