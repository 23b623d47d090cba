//! Root disks that VMs begin from. Everything here blocks.

use crate::fleet::{FleetError, cannot};
use crate::paths::Paths;
use bytes::Bytes;
use pando_guest::import::{ImportError, import};
use pando_wire::api::Image;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Turns an archive or a raw disk into an image of ours.
pub(crate) fn import_stream(paths: &Paths, input: impl Read) -> Result<Image, FleetError> {
    let imported =
        import(input, &paths.images(), |bytes| tracing::debug!(bytes, "importing")).map_err(|error| match error {
            ImportError::NoSpace { .. } | ImportError::Write { .. } => cannot("import the image")(error),
            _ => FleetError::NoImage(error),
        })?;
    let path = paths.image(&imported.digest);
    let keep = || {
        if imported.path != path {
            std::fs::rename(&imported.path, &path)?;
        }
        crate::paths::sync(&paths.images())
    };
    keep().map_err(cannot(format!("keep the image at {}", path.display())))?;
    Ok(Image { digest: imported.digest, size_bytes: imported.size_bytes })
}

/// A stream from an asynchronous sender as something to read from in a thread. A sender that goes away without an
/// [`Upload::End`] is an error: half an archive must not become an image.
pub(crate) struct Incoming {
    chunks: mpsc::Receiver<Upload>,
    rest: Bytes,
    is_over: bool,
}

/// A part of an upload.
#[derive(Debug)]
pub(crate) enum Upload {
    /// Some bytes.
    Chunk(Bytes),
    /// All was sent.
    End,
}

impl Incoming {
    /// A reader, and where to send to.
    pub(crate) fn channel() -> (mpsc::Sender<Upload>, Self) {
        let (sender, chunks) = mpsc::channel(16);
        (sender, Self { chunks, rest: Bytes::new(), is_over: false })
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.is_over {
            match self.chunks.blocking_recv() {
                Some(Upload::Chunk(chunk)) => self.rest = chunk,
                Some(Upload::End) => self.is_over = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload was cut short")),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_that_is_cut_short_is_an_error_and_one_that_ends_is_not() {
        let (sender, mut incoming) = Incoming::channel();
        sender.try_send(Upload::Chunk(Bytes::from_static(b"half"))).unwrap();
        drop(sender);
        let mut bytes = Vec::new();
        assert_eq!(incoming.read_to_end(&mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (sender, mut incoming) = Incoming::channel();
        sender.try_send(Upload::Chunk(Bytes::from_static(b"all"))).unwrap();
        sender.try_send(Upload::End).unwrap();
        let mut bytes = Vec::new();
        incoming.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"all");
    }
}
