//! The agent's protocol, on a vsock socket.

use crate::Monitor;
use pando_wire::agent::{Exec, Exit, Failure, FailureKind, Input, PORT, Reply, Request, VERSION};
use pando_wire::control::{Ending, Phase};
use pando_wire::frame;
use rustix::net::SendFlags;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn serve(monitor: &Arc<Monitor>, vsock: &UnixListener) {
    loop {
        let (stream, _) = vsock.accept().unwrap();
        let monitor = Arc::clone(monitor);
        std::thread::spawn(move || answer(&monitor, stream));
    }
}

fn answer(monitor: &Monitor, mut stream: UnixStream) -> Option<()> {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    assert_eq!(line, format!("CONNECT {PORT}\n"));
    stream.write_all(b"OK 1\n").ok()?;

    // A guest that stands still says nothing.
    while monitor.state.lock().unwrap().phase == Phase::Paused {
        std::thread::sleep(Duration::from_millis(5));
    }
    let request = frame::read(&mut input).ok()??;
    if let Request::Connect { port } = request {
        return connect(monitor, port, input, &mut stream);
    }
    let mut say = |reply| frame::write(&mut stream, &reply).ok();
    match request {
        Request::Ping => say(Reply::Pong { version: VERSION, generation: 0 }),
        Request::Adopt { identity, seed } => {
            assert_ne!(seed, [0; 32]);
            assert_eq!(identity.machine_id.len(), 32);
            // One that is no twin slept, and its programs must not see the time at which it fell asleep.
            assert!(identity.generation > 0 || monitor.state.lock().unwrap().is_on_time);
            if identity.env.contains_key("DIE") {
                std::process::exit(1);
            }
            monitor.state.lock().unwrap().adopted = identity.name;
            let reseeded = !identity.env.contains_key("NO_SEED");
            let hook = Failure { kind: FailureKind::Other, message: "the hook 10-db failed".into() };
            say(Reply::Adopted { reseeded, failure: identity.env.contains_key("FAIL").then_some(hook) })
        }
        Request::HeartbeatStop => say(Reply::Gap { longest_us: 42, beats: 1 }),
        Request::PowerOff => {
            say(Reply::Done)?;
            match monitor.name.as_str() {
                "stubborn" => return None,
                "sluggish" => std::thread::sleep(Duration::from_secs(2)),
                _ => (),
            }
            monitor.end(Ending::PowerOff)
        }
        Request::ForkBarrier => {
            say(Reply::Done)?;
            if monitor.name == "restless" {
                say(failed(FailureKind::Other, "nobody ended the fork barrier"))?;
            }
            // Until the host closes the connection.
            input.read_to_end(&mut Vec::new()).ok().map(|_| ())
        }
        Request::SetClock { unix_ns } => {
            assert!(unix_ns > 1 << 60);
            monitor.state.lock().unwrap().is_on_time = true;
            say(Reply::Done)
        }
        Request::Exec(exec) => run(monitor, &exec, &mut input, &mut say),
        _ => say(Reply::Done),
    }
}

/// To what listens on `port` of this computer.
fn connect(monitor: &Monitor, port: u16, mut input: BufReader<UnixStream>, stream: &mut UnixStream) -> Option<()> {
    if monitor.name == "old" {
        let unread = failed(FailureKind::Other, "cannot read the request: Found a bool that wasn't 0 or 1");
        return frame::write(stream, &unread).ok();
    }
    let Ok(mut program) = TcpStream::connect(("127.0.0.1", port)) else {
        return frame::write(stream, &failed(FailureKind::NotFound, &format!("nobody listens on port {port}"))).ok();
    };
    frame::write(stream, &Reply::Done).ok()?;
    let (mut from_program, mut to_host) = (program.try_clone().ok()?, stream.try_clone().ok()?);
    let back = std::thread::spawn(move || {
        match std::io::copy(&mut from_program, &mut to_host) {
            Ok(_) => drop(to_host.shutdown(Shutdown::Write)),
            Err(_) => drop(to_host.shutdown(Shutdown::Both)), // It broke.
        }
    });
    let _ = std::io::copy(&mut input, &mut program);
    let _ = program.shutdown(Shutdown::Write);
    // A host that is gone altogether is the end of both.
    while !back.is_finished() && rustix::net::send(&*stream, &[], SendFlags::NOSIGNAL).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = program.shutdown(Shutdown::Both);
    let _ = back.join();
    Some(())
}

fn run(monitor: &Monitor, exec: &Exec, input: &mut impl Read, say: &mut impl FnMut(Reply) -> Option<()>) -> Option<()> {
    let program = exec.argv[0].as_str();
    if !["echo", "hostname", "cat", "sleep", "phase", "pauses", "compute"].contains(&program) {
        return say(failed(FailureKind::NotFound, "no such program"));
    }
    say(Reply::Started { pid: 7 })?;
    match program {
        "hostname" => say(Reply::Stdout(monitor.state.lock().unwrap().adopted.clone().into_bytes()))?,
        "phase" => say(Reply::Stdout(format!("{:?}\n", monitor.state.lock().unwrap().phase).into_bytes()))?,
        "pauses" => say(Reply::Stdout(format!("{}\n", monitor.state.lock().unwrap().pauses).into_bytes()))?,
        // Goes on when nobody watches any more.
        "compute" => drop(std::thread::spawn(|| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(3) {
                std::hint::spin_loop();
            }
        })),
        "echo" => say(Reply::Stdout(format!("{}\n", exec.argv[1..].join(" ")).into_bytes()))?,
        _ => loop {
            match frame::read(input).ok()?? {
                Input::Stdin(bytes) if program == "cat" && bytes.is_empty() => break,
                Input::Stdin(bytes) if program == "cat" => say(Reply::Stderr(bytes))?,
                Input::Signal(signal) => return say(Reply::Exited(Exit::Signal(signal))),
                _ => (),
            }
        },
    }
    say(Reply::Exited(Exit::Code(3)))
}

fn failed(kind: FailureKind, message: &str) -> Reply {
    Reply::Failed(Failure { kind, message: message.into() })
}
