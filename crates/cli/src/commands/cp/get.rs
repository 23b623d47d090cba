//! Out of a VM.

use super::endpoint::parent_and_name;
use crate::agent::{Agent, Receiver};
use crate::archive::{self, UnpackError};
use crate::client::Client;
use crate::failure::Failure;
use crate::out;
use pando_wire::agent::{Reply, Request};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// How many chunks wait for the disk.
const CHUNKS_AHEAD: usize = 8;

/// Copies `path` in `vm` to `to`.
pub(super) async fn get(client: &Client, vm: &str, path: &str, to: PathBuf) -> Result<(), Failure> {
    if to == Path::new("-") {
        let mut agent = Agent::ask(client, vm, &Request::Get { path: path.to_owned() }).await?;
        while let Some(bytes) = next(&mut agent.receiver).await? {
            out::bytes(&bytes)?;
        }
        return Ok(());
    }
    let target = target(vm, path, to)?;
    let mut agent = Agent::ask(client, vm, &Request::Get { path: path.to_owned() }).await?;
    // Nothing is made here before the VM has something to give.
    let Some(first) = next(&mut agent.receiver).await? else {
        return Err(agent.receiver.unexpected().into());
    };
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut source = Source { chunks, chunk: Vec::new(), at: 0 };
        let left_out = archive::unpack(&mut source, &target)?;
        // Zeroes after the archive's end are still on their way; the sender must not find us gone.
        io::copy(&mut source, &mut io::sink()).map_err(UnpackError::Read)?;
        Ok::<_, UnpackError>(left_out)
    });
    let received = receive(&mut agent.receiver, first, sender).await;
    let unpacked = unpacking.await?;
    received?; // When the VM's side failed, the archive that broke off is only the consequence.
    let left_out = unpacked?;
    if left_out > 0 {
        out::note(&format!("note: {left_out} devices, pipes or the like were left out\n"));
    }
    Ok(())
}

/// What `to` means for something that is called `path` in the VM.
fn target(vm: &str, path: &str, to: PathBuf) -> Result<PathBuf, Failure> {
    if to.is_dir() {
        let (_, name) = parent_and_name(path)
            .ok_or_else(|| Failure::new(format!("{vm}:{path} has no name to be copied under; say a new folder's")))?;
        return Ok(to.join(name));
    }
    // A trailing slash is dropped: what is copied becomes that folder.
    Ok(to.components().collect())
}

/// Hands the archive over until the VM has sent it all, or nobody takes it any more.
async fn receive(
    receiver: &mut Receiver,
    first: Vec<u8>,
    sender: mpsc::Sender<io::Result<Vec<u8>>>,
) -> Result<(), Failure> {
    let mut chunk = Some(first);
    while let Some(bytes) = chunk {
        if sender.send(Ok(bytes)).await.is_err() {
            return Ok(()); // Unpacking ended and knows why.
        }
        chunk = match next(receiver).await {
            Ok(chunk) => chunk,
            Err(error) => {
                let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                return Err(error);
            }
        };
    }
    Ok(())
}

/// The next bytes of the archive; `None` when it is complete.
async fn next(receiver: &mut Receiver) -> Result<Option<Vec<u8>>, Failure> {
    match receiver.next().await? {
        Reply::Stdout(bytes) => Ok(Some(bytes)),
        Reply::Done => Ok(None),
        _ => Err(receiver.unexpected().into()),
    }
}

/// The archive, for the thread that unpacks it.
struct Source {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.chunk.len() - self.at);
        buffer[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_here_receives_what_has_a_name_and_anything_else_is_the_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path();
        assert_eq!(target("web", "/srv/www", here.to_owned()).unwrap(), here.join("www"));
        assert_eq!(target("web", "/srv/www", here.join("new/")).unwrap(), here.join("new"));
        assert!(target("web", "/", here.to_owned()).is_err());
        assert_eq!(target("web", "/", here.join("new")).unwrap(), here.join("new"));
    }
}
