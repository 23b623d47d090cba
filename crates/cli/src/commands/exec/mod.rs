//! `pando exec`.

mod input; // what the program gets: bytes, sizes of its terminal, signals

use crate::agent::{Agent, AgentError, Receiver};
use crate::client::Client;
use crate::failure::{Failure, TIMED_OUT};
use crate::terminal::{self, Raw};
use crate::{complete, out, parse};
use input::{Cause, Signals, Stdin, feed};
use pando_wire::agent::{Exec, Exit, FailureKind, Input, Reply, Request};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Exit statuses of shells for a program that is not there, and one that may not be run.
const NO_PROGRAM: u8 = 127;
const NO_PERMISSION: u8 = 126;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// What a program gets to end itself once its time is up, before it is killed.
const GRACE: Duration = Duration::from_secs(1);

/// Run a program in a VM.
#[derive(clap::Args)]
#[command(after_help = "\
Exits with the program's status; 128 + n when signal n ended it, 127 when there is no such program, 126 when it \
may not be run, 124 when time was up (the program is then ended). Interrupts typed here go to the program; the \
third ends the wait.

Examples:
  pando exec web cat /etc/os-release
  pando exec -it web sh                         # a shell in a terminal
  tar c src | pando exec -i web tar x -C /srv
  pando exec --timeout 5s -e V=1 -w /srv web make check")]
pub(crate) struct Args {
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal.
    #[arg(short, long)]
    tty: bool,
    /// A variable added to the VM's; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// A file of variables, one NAME=VALUE per line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory; / when absent.
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// A name that the VM knows, UID, or UID:GID; root when absent.
    #[arg(short, long)]
    user: Option<String>,
    /// End the program when it takes longer, and exit with 124.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<Duration>,
    /// Name or id of the VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut env = parse::environment(&args.env_file, args.env)?;
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    let exec =
        Exec { argv: args.command, env, cwd: args.cwd, user: args.user, terminal: args.tty.then(terminal::size) };
    let program = exec.argv.first().cloned().unwrap_or_default();
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let client = Client::open().await?;

    // Signals are ours from here on, so that none gets lost while the program starts.
    let mut signals = Signals::new(args.tty)?;
    let start = start(&client, &args.vm, exec);
    let agent = match within(deadline, start).await {
        Some(agent) => agent?,
        None => return Err(timed_out(&program, args.timeout)),
    };
    let raw = if args.tty && args.interactive { Raw::enter()? } else { None };
    let stdin = if args.interactive { Stdin::ours() } else { Stdin::closed() };
    let result = attend(agent, &mut signals, stdin, deadline).await;
    drop(raw); // Before anything is printed.
    match result? {
        End::Exited(Exit::Code(code)) => Ok(ExitCode::from(code as u8)), // The lowest 8 bits, as of any program.
        End::Exited(Exit::Signal(signal)) => Ok(signalled(signal)),
        End::TimedOut => Err(timed_out(&program, args.timeout)),
        End::Left(signal) => Ok(signalled(signal)),
    }
}

/// How an attended program came to its end, for us.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It ended.
    Exited(Exit),
    /// Its time was up.
    TimedOut,
    /// This signal told us to leave.
    Left(i32),
}

/// Starts the program.
async fn start(client: &Client, vm: &str, exec: Exec) -> Result<Agent, Failure> {
    let mut agent = Agent::ask(client, vm, &Request::Exec(exec)).await?;
    match agent.receiver.next().await {
        Ok(Reply::Started { .. }) => Ok(agent),
        Ok(_) => Err(agent.receiver.unexpected().into()),
        Err(error) => Err(match &error {
            AgentError::Failed { failure, .. } if failure.kind == FailureKind::NotFound => {
                Failure::from(error).with_code(NO_PROGRAM)
            }
            AgentError::Failed { failure, .. } if failure.kind == FailureKind::NotPermitted => {
                Failure::from(error).with_code(NO_PERMISSION)
            }
            _ => error.into(),
        }),
    }
}

/// Passes bytes and signals to the program and its output on, until it ends or its time is up.
async fn attend(
    agent: Agent,
    signals: &mut Signals,
    stdin: Stdin,
    mut deadline: Option<Instant>,
) -> Result<End, Failure> {
    let Agent { sender, mut receiver } = agent;
    let (urgent, queue) = mpsc::unbounded_channel();
    // Both directions at once: a program that writes before it reads must not wait for itself.
    let feeding = feed(sender, queue, stdin);
    let ended = show(&mut receiver);
    tokio::pin!(feeding, ended);
    let mut fed = false;
    // When the program's time is up: first asked to end, then ended, then left alone.
    let mut measures = [Some(SIGTERM), Some(SIGKILL), None].into_iter();
    let mut end = None;
    loop {
        let input = tokio::select! {
            biased;
            exit = &mut ended => {
                let exit = exit?;
                return Ok(end.unwrap_or(End::Exited(exit)));
            }
            () = until(deadline) => {
                let end = end.get_or_insert(End::TimedOut);
                match measures.next().flatten() {
                    Some(signal) if matches!(end, End::TimedOut) => {
                        deadline = Some(Instant::now() + GRACE);
                        Input::Signal(signal)
                    }
                    _ => return Ok(*end),
                }
            }
            // When the program no longer takes anything, it is about to end, and its exit is what counts.
            _ = &mut feeding, if !fed => {
                fed = true;
                continue;
            }
            cause = signals.next() => match cause {
                Cause::Input(input) => input,
                Cause::Leave(signal) => {
                    end = Some(End::Left(signal));
                    deadline = Some(Instant::now() + GRACE);
                    Input::Signal(signal)
                }
            },
        };
        // Refused only when nothing takes input any more, as above.
        let _ = urgent.send(input);
    }
}

/// Prints what the program writes, until it ends.
async fn show(receiver: &mut Receiver) -> Result<Exit, Failure> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match receiver.next().await? {
            Reply::Stdout(bytes) => write(&mut stdout, &bytes).await?,
            Reply::Stderr(bytes) => write(&mut stderr, &bytes).await?,
            Reply::Exited(exit) => return Ok(exit),
            _ => return Err(receiver.unexpected().into()),
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).await.map_err(out::failed)?;
    stream.flush().await.map_err(out::failed)
}

/// What `future` yields, unless the deadline comes first.
async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn signalled(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

fn timed_out(program: &str, timeout: Option<Duration>) -> Failure {
    let timeout = timeout.unwrap_or_default();
    Failure::new(format!("{program} did not end within {timeout:?}")).with_code(TIMED_OUT)
}
