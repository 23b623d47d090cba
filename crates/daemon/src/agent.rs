//! The daemon's side of the agent's protocol, over a VM's vsock socket.

use pando_wire::agent::{Failure, Identity, PORT, Reply, Request, SEED, VERSION};
use pando_wire::frame;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
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
    /// It is of a build that speaks another version of the protocol.
    #[error(
        "the agent in the guest speaks version {0} of the protocol and this build {VERSION}: stop the VM and start it again"
    )]
    Version(u32),
    /// It answered something else than what was asked.
    #[error("the agent in the guest gave an answer that does not belong to the request")]
    Confused,
}

/// How a child took on who it is.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// Whether its random numbers were its own before its programs ran.
    pub(crate) reseeded: bool,
    /// What went wrong with its identity or its hooks.
    pub(crate) failure: Option<Failure>,
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

    /// One attempt to connect, send `request` and read the first reply.
    async fn talk(socket: &Path, request: &Request) -> io::Result<(Self, Reply)> {
        let mut agent = Self::connect(socket).await?;
        // An agent that has too many connections says so before it is asked, and closes: the request then meets a closed
        // end, and the answer is there to be read all the same.
        let sent = agent.send(request).await;
        match (agent.receive().await, sent) {
            (Ok(reply), _) => Ok((agent, reply)),
            (Err(_), Err(unsent)) => Err(unsent),
            (Err(unheard), Ok(())) => Err(unheard),
        }
    }

    /// Connects, sends `request` and reads the first reply, again and again until an attempt succeeds or `limit` is
    /// over. Only for requests that may be made twice. An agent of another version is refused.
    pub(crate) async fn reach(socket: &Path, request: &Request, limit: Duration) -> Result<(Self, Reply), AgentError> {
        let deadline = Instant::now() + limit;
        let (mut pause, mut attempt) = (PAUSES.0, ATTEMPTS.0);
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Late { limit, source: last });
            }
            match timeout(attempt.min(left), Self::talk(socket, request)).await {
                Ok(Ok((_, Reply::Pong { version, .. }))) if version != VERSION => {
                    return Err(AgentError::Version(version));
                }
                Ok(Ok((_, Reply::Failed(failure)))) => return Err(AgentError::Failed(failure)),
                Ok(Ok(reached)) => return Ok(reached),
                Ok(Err(error)) => last = Some(error),
                Err(Elapsed { .. }) => attempt = (attempt * 2).min(ATTEMPTS.1),
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Connects, again and again until `limit` is over, and says nothing yet. What answered once has as long once more.
    pub(crate) async fn open(socket: &Path, limit: Duration) -> Result<UnixStream, AgentError> {
        // A connection can be accepted by a guest whose agent is not there; only an answer proves one.
        Self::reach(socket, &Request::Ping, limit).await?;
        match timeout(limit, Self::connect(socket)).await {
            Ok(agent) => Ok(agent?.0),
            Err(Elapsed { .. }) => Err(AgentError::Late { limit, source: None }),
        }
    }

    /// Makes one request on a connection of its own, once, and returns its first reply.
    pub(crate) async fn ask(socket: &Path, request: &Request, limit: Duration) -> Result<(Self, Reply), AgentError> {
        match timeout(limit, Self::talk(socket, request)).await {
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

    /// Tells a child of a fork who it is, with a seed that nobody else gets.
    pub(crate) async fn adopt(
        socket: &Path,
        identity: Identity,
        seed: [u8; SEED],
        limit: Duration,
    ) -> Result<Adopted, AgentError> {
        match Self::ask(socket, &Request::Adopt { identity, seed }, limit).await? {
            (_, Reply::Adopted { reseeded, failure }) => Ok(Adopted { reseeded, failure }),
            _ => Err(AgentError::Confused),
        }
    }

    /// Whether it has said nothing more, and the connection is whole.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(recv(&self.0, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK), Err(Errno::AGAIN))
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

#[cfg(test)]
mod tests {
    use super::*;
    use pando_wire::agent::FailureKind;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A guest that says `reply` on every connection, before it is asked anything, and hangs up.
    fn guest(reply: Reply) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.read_exact(&mut [0; "CONNECT 1024\n".len()]).unwrap();
                // All in one, so that it has hung up by the time that the host asks.
                let bytes = [b"OK 1\n", frame::encode(&reply).unwrap().as_slice()].concat();
                stream.write_all(&bytes).unwrap();
                drop(stream);
            }
        });
        (dir, socket)
    }

    /// The agent's refusal of a connection over its limit was lost: the request met a closed end, and the host tried
    /// again until its time was over.
    #[tokio::test]
    async fn why_a_connection_is_refused_is_heard_though_the_request_is_not() {
        let refusal = Failure { kind: FailureKind::Other, message: "the agent serves 256 connections already".into() };
        let (_dir, socket) = guest(Reply::Failed(refusal.clone()));
        for _ in 0..50 {
            let asked = Agent::ask(&socket, &Request::HeartbeatStop, LIMIT).await;
            assert!(matches!(&asked, Err(AgentError::Failed(failure)) if *failure == refusal), "{asked:?}");
        }
        let reached = Agent::reach(&socket, &Request::Ping, LIMIT).await;
        assert!(matches!(&reached, Err(AgentError::Failed(failure)) if *failure == refusal), "{reached:?}");
    }

    #[tokio::test]
    async fn an_agent_of_another_version_is_refused() {
        let (_dir, socket) = guest(Reply::Pong { version: VERSION - 1, generation: 0 });
        let reached = Agent::reach(&socket, &Request::Ping, LIMIT).await;
        assert!(matches!(reached, Err(AgentError::Version(version)) if version == VERSION - 1), "{reached:?}");
    }
}
