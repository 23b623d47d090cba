//! A VM's agent, through the daemon: `GET /vms/{name}/agent` upgraded, then frames of `wire::agent`.

use crate::client::{self, Client, segment};
use crate::failure::Failure;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use pando_wire::agent::{self, Reply, Request};
use pando_wire::frame;
use serde::Serialize;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The daemon does not connect us.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The connection failed.
    #[error("the connection to the agent of {vm} broke")]
    Broken {
        /// The VM's name.
        vm: String,
        /// How.
        source: io::Error,
    },
    /// The connection ended where an answer should be: the VM ended or the agent died.
    #[error("the agent of {0} went away")]
    Gone(String),
    /// The agent says no.
    #[error("{vm}: {}", .failure.message)]
    Failed {
        /// The VM's name.
        vm: String,
        /// Why.
        failure: agent::Failure,
    },
    /// The agent answers something else.
    #[error("the agent of {0} gave an answer that does not belong to the question")]
    Unexpected(String),
}

/// A connection to the agent, which carries one request.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// The half that asks.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: WriteHalf<TokioIo<Upgraded>>,
    vm: String,
}

/// The half that answers.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: ReadHalf<TokioIo<Upgraded>>,
    vm: String,
}

impl Agent {
    /// Connects to the agent of `vm` and sends `request`.
    pub(crate) async fn ask(client: &Client, vm: &str, request: &Request) -> Result<Self, AgentError> {
        let stream = client.upgrade(&format!("/vms/{}/agent", segment(vm)), "pando-agent").await?;
        let (read, write) = tokio::io::split(stream);
        let mut sender = Sender { stream: write, vm: vm.to_owned() };
        let mut receiver = Receiver { stream: read, vm: vm.to_owned() };
        if let Err(unsent) = sender.send(request).await {
            // An agent that has too many connections says so before it is asked, and closes.
            return Err(match receiver.next().await {
                Err(refused @ AgentError::Failed { .. }) => refused,
                _ => unsent,
            });
        }
        Ok(Self { sender, receiver })
    }

    /// The connection itself, where what follows are no frames.
    pub(crate) fn into_stream(self) -> TokioIo<Upgraded> {
        self.receiver.stream.unsplit(self.sender.stream)
    }
}

impl Sender {
    /// Sends one message.
    pub(crate) async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), AgentError> {
        let broken = |source| AgentError::Broken { vm: self.vm.clone(), source };
        let bytes = frame::encode(message).map_err(broken)?;
        self.stream.write_all(&bytes).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)
    }
}

impl Receiver {
    /// The next answer; a refusal becomes an error.
    pub(crate) async fn next(&mut self) -> Result<Reply, AgentError> {
        match self.read().await {
            Ok(Reply::Failed(failure)) => Err(AgentError::Failed { vm: self.vm.clone(), failure }),
            Ok(reply) => Ok(reply),
            // With something of ours unread, its end is a reset.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Err(AgentError::Gone(self.vm.clone()))
            }
            Err(source) => Err(AgentError::Broken { vm: self.vm.clone(), source }),
        }
    }

    /// What an answer that has no place here becomes.
    pub(crate) fn unexpected(&self) -> AgentError {
        AgentError::Unexpected(self.vm.clone())
    }

    async fn read(&mut self) -> io::Result<Reply> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).await?;
        let mut payload = vec![0; frame::checked_len(prefix)?];
        self.stream.read_exact(&mut payload).await?;
        frame::decode(&payload)
    }
}

/// The directory bit and size of `path` in `vm`; `None` when nothing is there.
pub(crate) async fn stat(client: &Client, vm: &str, path: &str) -> Result<Option<bool>, Failure> {
    let mut agent = Agent::ask(client, vm, &Request::Stat { path: path.to_owned() }).await?;
    match agent.receiver.next().await {
        Ok(Reply::Stat { directory, .. }) => Ok(Some(directory)),
        Ok(_) => Err(agent.receiver.unexpected().into()),
        Err(AgentError::Failed { failure, .. }) if failure.kind == agent::FailureKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
