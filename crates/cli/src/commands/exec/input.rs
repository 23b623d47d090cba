//! What a program in a VM gets from here: bytes of standard input, sizes of its terminal, signals.

use crate::agent::{AgentError, Sender};
use crate::terminal;
use pando_wire::agent::{CHUNK, Input};
use std::io;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// How many interrupts mean that the person wants out.
const ENOUGH_INTERRUPTS: usize = 3;
/// How many chunks of standard input wait for the connection.
const CHUNKS_AHEAD: usize = 4;
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;

/// Sends what is urgent, and otherwise what standard input has, until the agent takes no more.
pub(super) async fn feed(
    mut sender: Sender,
    mut urgent: mpsc::UnboundedReceiver<Input>,
    mut stdin: Stdin,
) -> Result<(), AgentError> {
    loop {
        let input = tokio::select! {
            biased;
            Some(input) = urgent.recv() => input,
            bytes = stdin.next() => Input::Stdin(bytes),
        };
        sender.send(&input).await?;
    }
}

/// Standard input of the program.
#[derive(Debug)]
pub(super) struct Stdin(Option<mpsc::Receiver<Vec<u8>>>);

impl Stdin {
    /// Ends at once.
    pub(super) fn closed() -> Self {
        Self(Some(mpsc::channel(1).1))
    }

    /// That of this process, whose end is passed on.
    pub(super) fn ours() -> Self {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; CHUNK];
            loop {
                // What cannot be read has ended, for the program.
                let len = stdin.read(&mut buffer).await.unwrap_or(0);
                if len == 0 || sender.send(buffer[..len].to_vec()).await.is_err() {
                    return;
                }
            }
        });
        Self(Some(receiver))
    }

    /// The next bytes; empty ones once, at the end, and then never anything.
    async fn next(&mut self) -> Vec<u8> {
        let Some(open) = &mut self.0 else {
            return std::future::pending().await;
        };
        let bytes = open.recv().await;
        if bytes.is_none() {
            self.0 = None;
        }
        bytes.unwrap_or_default()
    }
}

/// What to do about a signal.
#[derive(Debug)]
pub(super) enum Cause {
    /// Tell the program.
    Input(Input),
    /// Leave, having told the program this signal.
    Leave(i32),
}

/// The signals of this process.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    resize: Signal,
    /// With a terminal the program is interrupted through it, and signals are meant for us.
    tty: bool,
    interrupts: usize,
}

impl Signals {
    /// Takes them over.
    pub(super) fn new(tty: bool) -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            resize: signal(SignalKind::window_change())?,
            tty,
            interrupts: 0,
        })
    }

    /// Waits for the next.
    pub(super) async fn next(&mut self) -> Cause {
        tokio::select! {
            biased;
            _ = self.hangup.recv() => self.cause(SIGHUP),
            _ = self.terminate.recv() => self.cause(SIGTERM),
            _ = self.quit.recv() => self.cause(SIGQUIT),
            _ = self.interrupt.recv() => self.cause(SIGINT),
            _ = self.resize.recv(), if self.tty => Cause::Input(Input::Resize(terminal::size())),
        }
    }

    fn cause(&mut self, number: i32) -> Cause {
        if number == SIGINT {
            self.interrupts += 1;
        }
        let leave = self.tty || self.interrupts >= ENOUGH_INTERRUPTS;
        if leave { Cause::Leave(number) } else { Cause::Input(Input::Signal(number)) }
    }
}
