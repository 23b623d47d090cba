//! A checkpoint leaves as one stream: what the daemon knows of it, then what the store has of it.

use super::super::Fleet;
use super::super::error::FleetError;
use super::description::Description;
use super::store::Kept;
use bytes::Bytes;
use futures_util::{Stream, stream};
use pando_store::Store;
use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use tokio::sync::mpsc;

/// How much is sent at a time.
const CHUNK: usize = 256 << 10;
/// How many of these may wait for whoever reads.
const CHUNKS_AHEAD: usize = 4;

impl Fleet {
    /// All of a checkpoint that is stored. A stream that ends with an error is not all of it.
    pub(crate) async fn export_checkpoint(
        &self,
        name: &str,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, FleetError> {
        let checkpoint = self.find_checkpoint(name).await?;
        if self.kept(&checkpoint.id).await? != Kept::Whole {
            return Err(FleetError::Unstored { name: checkpoint.name, wanted: "export" });
        }
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let store = self.0.paths.store();
        tokio::task::spawn_blocking(move || {
            let name = checkpoint.name.clone();
            if let Err(error) = write(&store, Description::of(checkpoint), Outgoing(sender.clone())) {
                tracing::warn!(checkpoint = name, error, "it was not exported whole");
                // Whoever went away does not hear it.
                let _ = sender.blocking_send(Err(io::Error::other(error)));
            }
        });
        Ok(stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|chunk| (chunk, receiver)) }))
    }
}

fn write(store: &Path, description: Description, stream: impl Write) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut stream = BufWriter::with_capacity(CHUNK, stream);
    stream.write_all(&description.write()?)?;
    Store::open(store)?.export_with_working_sets(&[&description.id], &mut stream)?;
    Ok(stream.flush()?)
}

/// Where a thread writes to, and a task reads.
struct Outgoing(mpsc::Sender<io::Result<Bytes>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK)];
        match self.0.blocking_send(Ok(Bytes::copy_from_slice(part))) {
            Ok(()) => Ok(part.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
