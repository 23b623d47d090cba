//! A seed is written into the store, by a process for each: `pando pages save` reads what the seed says of itself.

use super::super::{Fleet, blocking, error::FleetError, error::cannot};
use super::earlier::Earlier;
use super::store::Kept;
use crate::db::{Checkpoint, Outcome, Sizes};
use crate::monitor::{LONG, Monitor, MonitorError};
use pando_wire::control::{Request, Response};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use tokio::process::Command;
use tokio::task::JoinHandle;

/// The saves that go on, by checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Saves(Mutex<HashMap<String, JoinHandle<()>>>);

impl Saves {
    fn begin(&self, id: &str, save: JoinHandle<()>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, save| !save.is_finished());
        all.insert(id.to_owned(), save);
    }

    /// Ends the save of checkpoint `id`, if it goes on. What it has written so far is garbage.
    pub(super) async fn end(&self, id: &str) {
        let save = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(save) = save {
            save.abort();
            let _ = save.await;
        }
    }
}

impl Fleet {
    /// Writes a checkpoint into the store, in the background, from its seed.
    pub(super) fn begin_to_save(&self, checkpoint: &Checkpoint) {
        let (fleet, of) = (self.clone(), checkpoint.clone());
        let save = tokio::spawn(async move {
            let mut closing = fleet.0.closing.clone();
            tokio::select! {
                () = fleet.save(&of) => (),
                // The seed outlives this daemon, and the next one begins again.
                _ = closing.wait_for(|over| *over) => (),
            }
        });
        self.0.saves.begin(&checkpoint.id, save);
    }

    async fn save(&self, checkpoint: &Checkpoint) {
        let (sizes, problem) = match self.write_out_seed(checkpoint).await {
            // It prints how large it is.
            Ok(output) if output.status.success() => (serde_json::from_slice(&output.stdout).unwrap_or_default(), None),
            Ok(output) => (Sizes::default(), Some(sentence(&output.stderr))),
            Err(error) => (Sizes::default(), Some(error.in_one_line())),
        };
        // Whatever that process said: another one, of an earlier daemon, may have written it.
        let outcome = match (self.kept(&checkpoint.id).await, &problem) {
            (Ok(Kept::Whole), _) => Outcome::Stored(sizes),
            (_, Some(problem)) => Outcome::Failed { problem },
            (Ok(Kept::Absent), None) => Outcome::Failed { problem: "it is not in the store" },
            (Err(error), None) => {
                tracing::error!(checkpoint = checkpoint.id, error = error.in_one_line(), "the store cannot be asked");
                Outcome::Failed { problem: "the store cannot be read" }
            }
        };
        match &outcome {
            Outcome::Failed { problem } => tracing::warn!(checkpoint = checkpoint.id, problem, "not stored"),
            _ => tracing::info!(checkpoint = checkpoint.id, name = checkpoint.name, "stored"),
        }
        if let Err(error) = self.0.db.checkpoint_became(checkpoint, outcome).await {
            tracing::error!(checkpoint = checkpoint.id, %error, "cannot write down whether it is stored");
        }
    }

    async fn write_out_seed(&self, checkpoint: &Checkpoint) -> Result<Output, FleetError> {
        let layers = self.0.db.seed_layers(&checkpoint.id).await?;
        let seed = self.0.supervisor.live(&checkpoint.id);
        let earlier = match &seed {
            Some(seed) => self.earlier(&checkpoint.vm, &checkpoint.id, seed.process()).await,
            None => None,
        };
        self.write_out(&checkpoint.id, &checkpoint.name, Some(layers), earlier).await
    }

    /// Has the seed `id`, which reads `layers`, write itself into a process that writes it into the store, and waits for
    /// that. What the `earlier` checkpoint has is left out, unless that fails. Without `layers` its disk is not written.
    /// `name` is for complaints.
    pub(super) async fn write_out(
        &self,
        id: &str,
        name: &str,
        layers: Option<Vec<String>>,
        earlier: Option<Earlier>,
    ) -> Result<Output, FleetError> {
        if let Some(earlier) = earlier {
            let problem = match self.write_out_since(Some(&earlier), id, name, layers.clone()).await {
                Ok(output) if output.status.success() => return Ok(output),
                Ok(output) => sentence(&output.stderr),
                Err(error) => error.in_one_line(),
            };
            // It may have been removed, or is damaged, or the monitor is one of an earlier build.
            tracing::info!(
                seed = id,
                earlier = earlier.id,
                problem,
                "not stored with what is stored; all of it is written"
            );
        }
        self.write_out_since(None, id, name, layers).await
    }

    async fn write_out_since(
        &self,
        earlier: Option<&Earlier>,
        id: &str,
        name: &str,
        layers: Option<Vec<String>>,
    ) -> Result<Output, FleetError> {
        let request = match (&layers, earlier.and_then(|earlier| earlier.disk)) {
            (None, _) => Request::SaveWithoutDisk,
            (Some(_), None) => Request::Save,
            (Some(_), Some(seal)) => Request::SaveSince(seal),
        };
        let (layers, ours, theirs) = self.open_to_save(layers.unwrap_or_default()).await?;
        let failed = || cannot(format!("run {}", self.0.monitor.display()));
        let saver = Command::new(&self.0.monitor)
            .args(["pages", "save", "--name", id, "--store"])
            .arg(self.0.paths.store())
            .args(earlier.iter().flat_map(|earlier| ["--since", &earlier.id]))
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            // Half a checkpoint is of no use to anybody.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed())?;

        let asked = async {
            let monitor = Monitor::connect(&self.0.paths.control_socket(id))?;
            let known_by = earlier.map(|earlier| earlier.known_by.each_ref().map(AsFd::as_fd));
            let seed = std::iter::once(ours.as_fd()).chain(layers.iter().map(AsFd::as_fd));
            let descriptors: Vec<_> = seed.chain(known_by.into_iter().flatten()).collect();
            match monitor.call(&request, &descriptors, LONG).await? {
                Response::Done => Ok(()),
                _ => Err(MonitorError::Confused),
            }
        };
        asked.await.map_err(|source| FleetError::Monitor {
            name: name.to_owned(),
            wanted: "save the seed of",
            source,
        })?;
        drop((ours, layers)); // From here on the stream ends with whoever writes it.
        saver.wait_with_output().await.map_err(failed())
    }

    /// The data files of a seed's layers, and a connection for what it has to say.
    async fn open_to_save(&self, layers: Vec<String>) -> Result<(Vec<File>, UnixStream, OwnedFd), FleetError> {
        let paths = self.0.paths.clone();
        blocking(move || {
            let open = |layer: &String| {
                let path = paths.layer_data(layer);
                File::open(&path).map_err(cannot(format!("open {}", path.display())))
            };
            let files = layers.iter().map(open).collect::<Result<_, _>>()?;
            let (ours, theirs) = UnixStream::pair().map_err(cannot("make a socket"))?;
            Ok((files, ours, theirs.into()))
        })
        .await
    }
}

/// What the program complained of, in one line.
pub(super) fn sentence(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .map(|line| line.strip_prefix("error: ").or(line.strip_prefix("because: ")).unwrap_or(line))
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() { "the process that was to store it was killed".into() } else { lines.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_command_is_one_line() {
        assert_eq!(sentence(b"error: cannot write\n  because: the disk is full\n"), "cannot write: the disk is full");
        assert!(sentence(b"").contains("killed"));
    }
}
