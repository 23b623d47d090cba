//! A guest's agent with a few programs and files, for tests.

use pando_wire::agent::{Exit, Failure, FailureKind, Input, Reply, Request};
use pando_wire::frame;
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Archives that were put, by the path they were put at. Tests use different paths.
pub(crate) static PUT: Mutex<Vec<(String, Vec<u8>)>> = Mutex::new(Vec::new());

/// Serves one connection.
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(stream);
    let Some(request) = receive::<Request>(&mut read).await else { return };
    match request {
        Request::Exec(exec) => {
            let argv: Vec<_> = exec.argv.iter().map(String::as_str).collect();
            program(&argv, exec.terminal.is_some(), &exec.env, read, write).await;
        }
        Request::Stat { path } => {
            let reply = match &*path {
                "/srv" | "/" => Reply::Stat { directory: true, len: 0 },
                "/etc/hosts" => Reply::Stat { directory: false, len: 3 },
                _ => not_found(&path),
            };
            send(&mut write, &reply).await;
        }
        Request::Put { path } => {
            if path == "/full" {
                let full = Failure { kind: FailureKind::Other, message: "no space left on the disk".to_owned() };
                send(&mut write, &Reply::Failed(full)).await;
                return;
            }
            let mut archive = Vec::new();
            while let Some(Input::Stdin(bytes)) = receive(&mut read).await {
                if bytes.is_empty() {
                    PUT.lock().unwrap().push((path, archive));
                    send(&mut write, &Reply::Done).await;
                    return;
                }
                archive.extend(bytes);
            }
        }
        Request::Get { path } if path == "/etc" || path == "/etc/hosts" => {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            let name = Path::new(&path).file_name().unwrap();
            let name = if path == "/etc" { Path::new(name).join("hosts") } else { name.into() };
            archive.append_data(&mut header, name, &b"lo\n"[..]).unwrap();
            send(&mut write, &Reply::Stdout(archive.into_inner().unwrap())).await;
            send(&mut write, &Reply::Done).await;
        }
        Request::Get { path } => send(&mut write, &not_found(&path)).await,
        other => panic!("no test asks for {other:?}"),
    }
}

/// A program's life.
async fn program(
    argv: &[&str],
    terminal: bool,
    env: &std::collections::BTreeMap<String, String>,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) {
    match argv[0] {
        "missing" => return send(&mut write, &not_found("missing")).await,
        "denied" => {
            let failure = Failure { kind: FailureKind::NotPermitted, message: "denied is no program".to_owned() };
            return send(&mut write, &Reply::Failed(failure)).await;
        }
        _ => send(&mut write, &Reply::Started { pid: 7 }).await,
    }
    let exit = match argv {
        ["echo", text] => {
            send(&mut write, &Reply::Stdout(format!("{text}\n").into())).await;
            send(&mut write, &Reply::Stderr(b"to stderr\n".to_vec())).await;
            Exit::Code(0)
        }
        ["env"] => {
            let text = env.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>();
            send(&mut write, &Reply::Stdout(text.into())).await;
            Exit::Code(0)
        }
        ["tty"] => Exit::Code(if terminal { 0 } else { 1 }),
        ["cat"] => loop {
            match receive(&mut read).await {
                // Waits until its output is taken, as cat does.
                Some(Input::Stdin(bytes)) if !bytes.is_empty() => send(&mut write, &Reply::Stdout(bytes)).await,
                Some(Input::Stdin(_)) => break Exit::Code(0),
                Some(_) => (),
                None => return,
            }
        },
        ["exit", code] => Exit::Code(code.parse().unwrap()),
        ["die", signal] => Exit::Signal(signal.parse().unwrap()),
        // Says that it is ready, and ends when a signal comes: with it, or only with SIGKILL.
        ["wait"] => {
            send(&mut write, &Reply::Stdout(b"ready\n".to_vec())).await;
            loop {
                match receive(&mut read).await {
                    Some(Input::Signal(signal)) => {
                        send(&mut write, &Reply::Stderr(format!("got {signal}\n").into())).await;
                        break Exit::Signal(signal);
                    }
                    Some(_) => (),
                    None => return,
                }
            }
        }
        ["one-key"] => match receive(&mut read).await {
            Some(Input::Stdin(bytes)) if bytes == b"k" => Exit::Code(0),
            _ => Exit::Code(1),
        },
        ["stubborn", said @ ..] => loop {
            if !said.is_empty() {
                send(&mut write, &Reply::Stdout(b"ready\n".to_vec())).await;
            }
            match receive(&mut read).await {
                Some(Input::Signal(signal)) => {
                    send(&mut write, &Reply::Stderr(format!("got {signal}\n").into())).await;
                    if signal == 9 {
                        break Exit::Signal(9);
                    }
                }
                Some(_) => (),
                None => return,
            }
        },
        ["vanish"] => return,
        other => panic!("no test runs {other:?}"),
    };
    send(&mut write, &Reply::Exited(exit)).await;
}

fn not_found(what: &str) -> Reply {
    Reply::Failed(Failure { kind: FailureKind::NotFound, message: format!("there is no {what}") })
}

async fn send<T: Serialize>(write: &mut (impl AsyncWrite + Unpin), message: &T) {
    // The command may be gone already.
    let _ = write.write_all(&frame::encode(message).unwrap()).await;
    let _ = write.flush().await;
}

async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> Option<T> {
    let mut prefix = [0; 4];
    read.read_exact(&mut prefix).await.ok()?;
    let mut payload = vec![0; frame::checked_len(prefix).unwrap()];
    read.read_exact(&mut payload).await.ok()?;
    Some(frame::decode(&payload).unwrap())
}
