//! Running a program in a VM, for callers that need neither a terminal nor a stream.

use super::error::FleetError;
use super::{AGENT_LIMIT, Fleet};
use crate::agent::{Agent, AgentError, read_reply};
use pando_wire::agent::{CHUNK, Exec, Exit, Input, Reply, Request};
use pando_wire::api::{ExecReport, ExecRequest};
use pando_wire::frame;
use rustix::process::Signal;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::sleep;

/// How long a program may run when nobody says.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// How much output is kept, both streams together.
const MAX_OUTPUT: usize = 8 << 20;

impl Fleet {
    /// Runs a program in a VM and waits for its end.
    pub(crate) async fn exec(&self, name: &str, request: ExecRequest) -> Result<ExecReport, FleetError> {
        if request.argv.is_empty() {
            return Err(FleetError::Invalid("argv is empty: nothing to run".into()));
        }
        let (record, mut visit) = self.enter(name, "run a program in").await?;
        let program = request.argv[0].clone();
        let limit = request.timeout_ms.map_or(DEFAULT_LIMIT, Duration::from_millis);
        let exec = Request::Exec(Exec {
            argv: request.argv,
            env: request.env,
            cwd: request.cwd,
            user: request.user,
            terminal: None,
        });
        let socket = self.0.paths.vsock_socket(&record.id);
        let failed = |source| match source {
            AgentError::Failed(_) => FleetError::Guest { name: record.name.clone(), source },
            _ => FleetError::Agent { name: record.name.clone(), source },
        };
        let agent = match Agent::ask(&socket, &exec, AGENT_LIMIT).await.map_err(failed)? {
            (agent, Reply::Started { .. }) => agent,
            _ => return Err(failed(AgentError::Confused)),
        };
        visit.is_heard();

        let (mut from_guest, mut to_guest) = agent.into_stream().into_split();
        let is_fed = AtomicBool::new(false);
        let feed = async {
            let input = request.stdin.unwrap_or_default();
            for chunk in input.as_bytes().chunks(CHUNK).chain([&[][..]]) {
                // A program that does not read its input is none of our business, nor is one that has ended.
                if to_guest.write_all(&frame::encode(&Input::Stdin(chunk.to_vec()))?).await.is_err() {
                    break;
                }
            }
            is_fed.store(true, Ordering::Relaxed);
            std::future::pending::<io::Result<ExecReport>>().await
        };
        let report = tokio::select! {
            report = collect(&mut from_guest) => Some(report),
            error = feed => Some(error),
            () = sleep(limit) => None,
        };
        self.program_ended(&record.id);
        match report {
            Some(report) => report.map_err(|error| failed(error.into())),
            None => {
                // In the middle of a frame there is nothing to say but the end of the connection.
                if is_fed.load(Ordering::Relaxed)
                    && let Ok(kill) = frame::encode(&Input::Signal(Signal::KILL.as_raw()))
                {
                    let _ = to_guest.write_all(&kill).await;
                }
                Err(FleetError::ExecLate { name: record.name, program, limit })
            }
        }
    }
}

/// Reads until the program has ended.
async fn collect(from_guest: &mut (impl AsyncRead + Unpin)) -> io::Result<ExecReport> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut truncated = false;
    loop {
        let (mut bytes, is_stdout) = match read_reply(from_guest).await? {
            Reply::Stdout(bytes) => (bytes, true),
            Reply::Stderr(bytes) => (bytes, false),
            Reply::Exited(exit) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return Ok(ExecReport { exit: status(exit), stdout: text(stdout), stderr: text(stderr), truncated });
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent sent what is no output")),
        };
        let room = MAX_OUTPUT - stdout.len() - stderr.len();
        truncated |= bytes.len() > room;
        bytes.truncate(room);
        if is_stdout { stdout.append(&mut bytes) } else { stderr.append(&mut bytes) }
    }
}

/// An end as shells say it.
fn status(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => signal.saturating_add(128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_has_a_bound_and_the_rest_is_said_to_be_missing() {
        let mut stream = Vec::new();
        for _ in 0..=MAX_OUTPUT / CHUNK {
            stream.extend(frame::encode(&Reply::Stdout(vec![b'x'; CHUNK])).unwrap());
        }
        stream.extend(frame::encode(&Reply::Exited(Exit::Signal(9))).unwrap());

        let report = collect(&mut &stream[..]).await.unwrap();

        assert_eq!((report.stdout.len(), report.truncated, report.exit), (MAX_OUTPUT, true, 137));
    }
}
