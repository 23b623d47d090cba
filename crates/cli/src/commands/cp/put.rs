//! Into a VM.

use super::endpoint::parent_and_name;
use crate::agent::{self, Agent, AgentError, Sender};
use crate::archive::{self, Owners, PackError};
use crate::client::Client;
use crate::failure::{Failure, NOT_FOUND};
use bytes::Bytes;
use pando_wire::agent::{CHUNK, Input, Reply, Request};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// How long to wait for the agent's reason once it takes nothing more.
const REASON_LIMIT: Duration = Duration::from_secs(2);

/// Copies `from` to `path` in `vm`.
pub(super) async fn put(client: &Client, from: PathBuf, vm: &str, path: &str) -> Result<(), Failure> {
    if from == Path::new("-") {
        let (sender, chunks) = mpsc::channel(1);
        tokio::spawn(read_stdin(sender));
        return send(client, vm, path, chunks).await;
    }
    let shown = from.display();
    let unreadable = |error: io::Error| Failure::from(error).under(format!("cannot read {shown}"));
    let metadata = std::fs::metadata(&from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unreadable(error).with_code(NOT_FOUND),
        _ => unreadable(error),
    })?;
    let no_folder = || Failure::new(format!("there is no folder {vm}:{path}")).with_code(NOT_FOUND);
    let (folder, name) = match agent::stat(client, vm, path).await? {
        Some(true) => (path.to_owned(), archive::base_name(&from).map_err(unreadable)?),
        Some(false) if metadata.is_dir() || path.ends_with('/') => {
            return Err(Failure::new(format!("cannot copy {shown} to {vm}:{path}, which is not a folder")));
        }
        None if !metadata.is_dir() && path.ends_with('/') => {
            return Err(no_folder());
        }
        Some(false) | None => {
            let (folder, name) = parent_and_name(path).ok_or_else(no_folder)?;
            (folder, name.into())
        }
    };
    let (chunks, packing) = archive::stream(from.clone(), Some(name), Owners::Root);
    let sent = send(client, vm, &folder, chunks).await;
    match packing.await? {
        Ok(()) | Err(PackError::Send { .. }) => sent,
        Err(error) => Err(error.into()),
    }
}

/// Sends an archive to be unpacked in the folder `path` of `vm`.
async fn send(client: &Client, vm: &str, path: &str, chunks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), Failure> {
    let Agent { mut sender, mut receiver } = Agent::ask(client, vm, &Request::Put { path: path.to_owned() }).await?;
    let answer = receiver.next();
    tokio::pin!(answer);
    let reply = tokio::select! {
        biased;
        reply = &mut answer => reply, // Before the end: a refusal.
        sent = pass_on(&mut sender, chunks) => match sent {
            Ok(()) => answer.await,
            Err(SendError::Incomplete) => return Err(Failure::new("the archive is incomplete")),
            // The agent closed the connection, and has said why if it could.
            Err(SendError::Agent(error)) => match tokio::time::timeout(REASON_LIMIT, answer).await {
                Ok(Err(reason @ AgentError::Failed { .. })) => Err(reason),
                _ => Err(error),
            },
        },
    };
    match reply? {
        Reply::Done => Ok(()),
        _ => Err(AgentError::Unexpected(vm.to_owned()).into()),
    }
}

/// Why an archive was not sent.
enum SendError {
    /// Its source failed; the agent must not take what it has for the whole.
    Incomplete,
    /// The connection failed.
    Agent(AgentError),
}

async fn pass_on(sender: &mut Sender, mut chunks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), SendError> {
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk.map_err(|_| SendError::Incomplete)?;
        sender.send(&Input::Stdin(chunk.to_vec())).await.map_err(SendError::Agent)?;
    }
    sender.send(&Input::Stdin(Vec::new())).await.map_err(SendError::Agent)
}

async fn read_stdin(sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match stdin.read(&mut buffer).await {
            Ok(0) => return,
            Ok(len) => Ok(Bytes::copy_from_slice(&buffer[..len])),
            Err(error) => Err(error),
        };
        let last = chunk.is_err();
        if sender.send(chunk).await.is_err() || last {
            return;
        }
    }
}
