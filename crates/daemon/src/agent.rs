//! The daemon's side of the agent's protocol, over a VM's vsock socket.

use pando_wire::agent::{Failure, PORT, Reply, Request};
use pando_wire::frame;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{error::Elapsed, sleep, timeout};

/// Between two attempts, at first and at last: a child of a fork answers within milliseconds, a boot takes seconds, and
/// a hundred VMs that are waited for must not keep the host busy.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How long one attempt may take, at first and at last: a packet that a guest's driver forgot while it started anew is
/// never answered.
const ATTEMPTS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The longest `OK <port>` line.
const LINE_LIMIT: usize = 32;

/// Why an agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// It did not answer in time.
    #[error("the agent in the guest did not answer within {} ms", limit.as_millis())]
    Late {
        /// How long was waited.
        limit: Duration,
        /// What the last attempt ended with.
        source: Option<io::Error>,
    },
    /// The connection broke.
    #[error("the connection to the agent in the guest broke")]
    Broken(#[from] io::Error),
    /// It answered that it cannot.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// It answered something else than what was asked.
    #[error("the agent in the guest gave an answer that does not belong to the request")]
    Confused,
}

/// One connection to an agent.
#[derive(Debug)]
pub(crate) struct Agent(UnixStream);

impl Agent {
    /// One attempt to connect.
    async fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
        let mut line = Vec::new();
        loop {
            let byte = stream.read_u8().await?;
            if byte == b'\n' {
                break;
            }
            line.push(byte);
            if line.len() > LINE_LIMIT {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is too long"));
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the guest did not accept the connection"));
        }
        Ok(Self(stream))
    }

    /// Connects, sends `request` and reads the first reply, again and again until an attempt succeeds or `limit` is
    /// over. Only for requests that may be made twice.
    pub(crate) async fn reach(socket: &Path, request: &Request, limit: Duration) -> Result<(Self, Reply), AgentError> {
        let deadline = Instant::now() + limit;
        let (mut pause, mut attempt) = (PAUSES.0, ATTEMPTS.0);
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Late { limit, source: last });
            }
            let once = async {
                let mut agent = Self::connect(socket).await?;
                agent.send(request).await?;
                let reply = agent.receive().await?;
                Ok::<_, io::Error>((agent, reply))
            };
            match timeout(attempt.min(left), once).await {
                Ok(Ok((_, Reply::Failed(failure)))) => return Err(AgentError::Failed(failure)),
                Ok(Ok(reached)) => return Ok(reached),
                Ok(Err(error)) => last = Some(error),
                Err(Elapsed { .. }) => attempt = (attempt * 2).min(ATTEMPTS.1),
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Connects, again and again until `limit` is over, and says nothing yet.
    pub(crate) async fn open(socket: &Path, limit: Duration) -> Result<UnixStream, AgentError> {
        // A connection can be accepted by a guest whose agent is not there; only an answer proves one.
        Self::reach(socket, &Request::Ping, limit).await?;
        match timeout(ATTEMPTS.1, Self::connect(socket)).await {
            Ok(agent) => Ok(agent?.0),
            Err(Elapsed { .. }) => Err(AgentError::Late { limit: ATTEMPTS.1, source: None }),
        }
    }

    /// Makes one request on a connection of its own, once, and returns its first reply.
    pub(crate) async fn ask(socket: &Path, request: &Request, limit: Duration) -> Result<(Self, Reply), AgentError> {
        let once = async {
            let mut agent = Self::connect(socket).await?;
            agent.send(request).await?;
            let reply = agent.receive().await?;
            Ok::<_, io::Error>((agent, reply))
        };
        match timeout(limit, once).await {
            Ok(Ok((_, Reply::Failed(failure)))) => Err(AgentError::Failed(failure)),
            Ok(reached) => Ok(reached?),
            Err(Elapsed { .. }) => Err(AgentError::Late { limit, source: None }),
        }
    }

    /// [`Agent::ask`] for requests that are answered by `Done`. What comes back keeps the connection open.
    pub(crate) async fn order(socket: &Path, request: &Request, limit: Duration) -> Result<Self, AgentError> {
        match Self::ask(socket, request, limit).await? {
            (agent, Reply::Done) => Ok(agent),
            _ => Err(AgentError::Confused),
        }
    }

    async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.0.write_all(&frame::encode(message)?).await
    }

    /// Reads the next reply.
    pub(crate) async fn receive(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.0).await
    }

    /// The connection itself.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.0
    }
}

/// Reads one reply from `stream`.
pub(crate) async fn read_reply(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Reply> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut payload = vec![0; frame::checked_len(prefix)?];
    stream.read_exact(&mut payload).await?;
    frame::decode(&payload)
}
