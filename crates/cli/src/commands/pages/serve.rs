//! A checkpoint becomes pages: a thread for each connection of the monitor, until all are closed.

use super::answer::Served;
use crate::failure::Failure;
use pando_store::{Turn, Turns};
use pando_sys::give_way;
use pando_wire::control::Connection;
use pando_wire::pages::{Answer, Ask, Remote, Serve, Server, urgent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub(super) fn run(store: &Path, name: &str) -> Result<ExitCode, Failure> {
    let (connections, remote) =
        connections().map_err(|failure| failure.under("standard input brings no connections"))?;
    match Served::open(store, name, remote) {
        Ok(served) => {
            thread::scope(|scope| {
                let urgent = urgent(connections.len());
                for (at, connection) in connections.into_iter().enumerate() {
                    let served = &served;
                    scope.spawn(move || {
                        if at >= urgent {
                            give_way();
                        }
                        // A connection that breaks is the monitor's to notice.
                        serve(connection, |ask, answers| served.answer(ask, answers))
                    });
                }
            });
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            let failure = failure.under(format!("cannot serve checkpoint {name}"));
            // The first one is where a monitor asks what there is.
            if let Some(first) = connections.into_iter().next() {
                let _ = serve(first, |_, answers| answers.give(&Answer::Lost(failure.lines().to_vec()), &[]));
            }
            Err(failure)
        }
    }
}

fn connections() -> Result<(Vec<UnixStream>, Option<Remote>), Failure> {
    let packets = Connection::from_fd(io::stdin().as_fd().try_clone_to_owned()?);
    match packets.receive::<Serve>()? {
        Some((Serve { connections, remote }, sockets)) if connections as usize == sockets.len() => {
            Ok((sockets.into_iter().map(UnixStream::from).collect(), remote))
        }
        Some(_) => Err(Failure::new("there are not as many as it says")),
        None => Err(Failure::new("its other end is closed")),
    }
}

/// Where answers go.
pub(super) struct Answers {
    connection: Server<UnixStream>,
    /// Whoever is at the other end has it.
    turn: Option<Turn>,
}

impl Answers {
    /// Gives a turn as soon as there is one, unless the connection is closed before.
    pub(super) fn begin_turn(&mut self, turns: &Turns) -> io::Result<()> {
        self.turn = None;
        // Who waits for an answer says nothing, so what there would be to be read is the end.
        let has_ended = |connection: &UnixStream, wait: Duration| {
            let timeout = Timespec::try_from(wait).ok();
            poll(&mut [PollFd::new(connection, PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0)
        };
        self.turn = turns.begin(|wait| !has_ended(self.connection.stream(), wait));
        if self.turn.is_none() {
            return Ok(());
        }
        self.give(&Answer::Turn, &[])
    }

    /// Takes it back.
    pub(super) fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Sends one, and the bytes behind it.
    pub(super) fn give(&mut self, answer: &Answer, bytes: &[u8]) -> io::Result<()> {
        self.connection.give(answer, bytes)
    }
}

/// Answers until the connection is closed.
fn serve(connection: UnixStream, mut answer: impl FnMut(&Ask, &mut Answers) -> io::Result<()>) -> io::Result<()> {
    let mut answers = Answers { connection: Server::new(connection), turn: None };
    while let Some(ask) = answers.connection.asked()? {
        answer(&ask, &mut answers)?;
    }
    Ok(())
}
