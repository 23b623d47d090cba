//! One channel with a program at its end.

use super::program::Program;
use crate::agent::{Agent, AgentError, Receiver, Sender};
use crate::client::Client;
use pando_wire::agent::{CHUNK, Exit, Input, Reply, Request, WindowSize};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::collections::BTreeMap;

/// The kind of data that is standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// The most variables that a client may set.
const MAX_VARIABLES: usize = 256;
/// What a shell says of a program that could not be started.
const NOT_STARTED: u32 = 127;

/// What a program is run with.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) vm: String,
    /// As whom, in the guest.
    pub(super) user: String,
    pub(super) handle: Handle,
}

/// What a client said before it said what to run.
#[derive(Default)]
struct Wishes {
    env: BTreeMap<String, String>,
    terminal: Option<WindowSize>,
}

impl Session {
    /// Runs what the client asks for on `channel`, to its end or the client's.
    pub(super) async fn serve(self, channel: Channel<Msg>) {
        let (mut from_client, to_client) = channel.split();
        // Whoever does not hear us has gone.
        let Some((program, wishes)) = self.asked(&mut from_client, &to_client).await else { return };
        let status = match self.start(program, wishes).await {
            Err(error) => {
                let _ = to_client.extended_data_bytes(STDERR, format!("pando: {error}\r\n")).await;
                NOT_STARTED
            }
            Ok(Agent { sender, mut receiver }) => {
                let fed = feed(&mut from_client, sender);
                let shown = show(&mut receiver, &to_client);
                tokio::pin!(fed, shown);
                tokio::select! {
                    status = &mut shown => status,
                    is_gone = &mut fed => match is_gone {
                        Gone::Client => return, // The program is hung up on.
                        Gone::Program => shown.await,
                    },
                }
            }
        };
        let _ = to_client.exit_status(status).await;
        let _ = to_client.eof().await;
        let _ = to_client.close().await;
    }

    /// What the client wants to have run, and how.
    async fn asked(
        &self,
        from_client: &mut ChannelReadHalf,
        to_client: &ChannelWriteHalf<Msg>,
    ) -> Option<(Program, Wishes)> {
        let mut wishes = Wishes::default();
        loop {
            let (program, is_fine) = match from_client.wait().await? {
                ChannelMsg::RequestPty { term, col_width, row_height, .. } => {
                    wishes.terminal = Some(size(col_width, row_height));
                    wishes.env.insert("TERM".into(), term);
                    (None, true)
                }
                ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                    let has_room = wishes.env.len() < MAX_VARIABLES;
                    if has_room {
                        wishes.env.insert(variable_name, variable_value);
                    }
                    (None, has_room)
                }
                ChannelMsg::WindowChange { col_width, row_height, .. } => {
                    wishes.terminal = wishes.terminal.map(|_| size(col_width, row_height));
                    continue; // It is not answered.
                }
                ChannelMsg::RequestShell { .. } => (Some(Program::Shell), true),
                ChannelMsg::Exec { command, .. } => match String::from_utf8(command) {
                    Ok(command) => (Some(Program::Command(command)), true),
                    Err(_) => (None, false), // The agent takes text.
                },
                ChannelMsg::RequestSubsystem { name, .. } if name == "sftp" => (Some(Program::Sftp), true),
                ChannelMsg::RequestSubsystem { .. }
                | ChannelMsg::RequestX11 { .. }
                | ChannelMsg::AgentForward { .. } => (None, false),
                ChannelMsg::Close => return None,
                _ => continue,
            };
            let id = to_client.id();
            let answered =
                if is_fine { self.handle.channel_success(id).await } else { self.handle.channel_failure(id).await };
            answered.ok()?;
            if let Some(program) = program {
                return Some((program, wishes));
            }
        }
    }

    async fn start(&self, program: Program, Wishes { env, terminal }: Wishes) -> Result<Agent, AgentError> {
        let exec = program.exec(self.user.clone(), env, terminal);
        let mut agent = Agent::ask(&self.client, &self.vm, &Request::Exec(exec)).await?;
        match agent.receiver.next().await? {
            Reply::Started { .. } => Ok(agent),
            _ => Err(agent.receiver.unexpected()),
        }
    }
}

/// Who no longer takes part.
enum Gone {
    Client,
    Program,
}

/// Passes on what the client sends.
async fn feed(from_client: &mut ChannelReadHalf, mut sender: Sender) -> Gone {
    while let Some(message) = from_client.wait().await {
        let inputs = match message {
            ChannelMsg::Data { data } => data.chunks(CHUNK).map(|chunk| Input::Stdin(chunk.to_vec())).collect(),
            ChannelMsg::Eof => vec![Input::Stdin(Vec::new())],
            ChannelMsg::WindowChange { col_width, row_height, .. } => vec![Input::Resize(size(col_width, row_height))],
            ChannelMsg::Signal { signal } => number(&signal).map(Input::Signal).into_iter().collect(),
            ChannelMsg::Close => return Gone::Client,
            _ => Vec::new(),
        };
        for input in inputs {
            if sender.send(&input).await.is_err() {
                return Gone::Program;
            }
        }
    }
    Gone::Client
}

/// Passes on what the program writes. The answer is its exit status, as a shell says it.
async fn show(receiver: &mut Receiver, to_client: &ChannelWriteHalf<Msg>) -> u32 {
    loop {
        let sent = match receiver.next().await {
            Ok(Reply::Stdout(bytes)) => to_client.data_bytes(bytes).await,
            Ok(Reply::Stderr(bytes)) => to_client.extended_data_bytes(STDERR, bytes).await,
            Ok(Reply::Exited(Exit::Code(code))) => return u32::from(code as u8), // The lowest 8 bits, as of any program.
            Ok(Reply::Exited(Exit::Signal(signal))) => return 128 + signal.unsigned_abs(),
            Ok(_) => return NOT_STARTED,
            Err(error) => {
                let _ = to_client.extended_data_bytes(STDERR, format!("pando: {error}\r\n")).await;
                return 255; // As ssh says of a connection that broke.
            }
        };
        if sent.is_err() {
            return NOT_STARTED; // There is nobody to be told.
        }
    }
}

fn size(columns: u32, rows: u32) -> WindowSize {
    let side = |length| u16::try_from(length).unwrap_or(u16::MAX);
    WindowSize { rows: side(rows), columns: side(columns) }
}

/// The number of a signal that the protocol has a name for (RFC 4254, section 6.10).
fn number(signal: &Sig) -> Option<i32> {
    use rustix::process::Signal;
    let signal = match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    };
    Some(signal.as_raw())
}
