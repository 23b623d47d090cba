//! What the host sees of connections to programs of the guest, over a pair of sockets instead of vsock.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are no test to clippy")]

use pando_agent::{Agent, reaper::Reaper, server};
use pando_wire::{
    agent::{FailureKind, MAX_FORWARDS, Reply, Request},
    frame,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(20);

fn agent() -> Arc<Agent> {
    static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
    let reaper = Arc::clone(REAPER.get_or_init(|| Reaper::start().unwrap()));
    Arc::new(Agent::new(reaper, PathBuf::from(env!("CARGO_BIN_EXE_pando-agent")), None, PathBuf::from("/")))
}

/// What it answers to the request for a connection, and the connection.
fn ask(agent: &Arc<Agent>, port: u16) -> (Option<Reply>, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(LIMIT)).unwrap();
    host.set_write_timeout(Some(LIMIT)).unwrap();
    server::admit(agent, guest.into());
    frame::write(&mut &host, &Request::Connect { port }).unwrap();
    (frame::read(&mut &host).unwrap(), host)
}

/// A connection, both ends of it.
fn connect(agent: &Arc<Agent>, listener: &TcpListener) -> (UnixStream, TcpStream) {
    let (reply, host) = ask(agent, listener.local_addr().unwrap().port());
    assert_eq!(reply, Some(Reply::Done));
    let (program, _) = listener.accept().unwrap();
    program.set_read_timeout(Some(LIMIT)).unwrap();
    (host, program)
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

fn text(stream: &mut impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Whether the host's end says that the connection is over both ways, and not just one half of it.
fn is_closed_as_a_whole(host: &UnixStream) -> bool {
    matches!((&*host).write(b"x"), Err(error) if error.kind() == ErrorKind::BrokenPipe)
}

#[test]
fn bytes_go_both_ways_and_each_half_ends_by_itself() {
    let (agent, listener) = (agent(), listen());
    let (mut host, mut program) = connect(&agent, &listener);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut program), "question");
    program.write_all(b"answer").unwrap();
    thread::sleep(Duration::from_millis(50)); // A connection whose half is over is a whole one the other way.
    program.write_all(b", and more").unwrap();
    drop(program);
    assert_eq!(text(&mut host), "answer, and more");

    let (mut host, mut program) = connect(&agent, &listener);
    program.write_all(b"banner").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut host), "banner");
    assert!(!is_closed_as_a_whole(&host));
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut program), "x");
}

#[test]
fn what_was_said_before_the_answer_reaches_the_program() {
    let listener = listen();
    let port = listener.local_addr().unwrap().port();
    let (mut host, guest) = UnixStream::pair().unwrap();
    let both = [frame::encode(&Request::Connect { port }).unwrap(), b"early".to_vec()].concat();
    host.write_all(&both).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    server::admit(&agent(), guest.into());
    assert_eq!(text(&mut listener.accept().unwrap().0), "early");
}

#[test]
fn a_program_is_found_at_either_loopback_address_and_at_any() {
    let agent = agent();
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let listener = match TcpListener::bind(address) {
            Ok(listener) => listener,
            Err(_) if address.starts_with('[') && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() => {
                eprintln!("skipped: {address} needs IPv6");
                continue;
            }
            Err(error) => panic!("{address}: {error}"),
        };
        let (mut host, mut program) = connect(&agent, &listener);
        program.write_all(b"here").unwrap();
        drop(program);
        assert_eq!(text(&mut host), "here", "{address}");
    }
}

#[test]
fn where_nobody_listens_is_said_so() {
    let port = listen().local_addr().unwrap().port(); // It is closed again.
    let (reply, mut host) = ask(&agent(), port);
    let Some(Reply::Failed(failure)) = reply else { panic!("{reply:?}") };
    assert_eq!((failure.kind, failure.message), (FailureKind::NotFound, format!("nobody listens on port {port}")));
    assert_eq!(text(&mut host), "");
}

#[test]
fn much_goes_both_ways_at_once_and_arrives_whole() {
    const LEN: usize = 32 << 20;
    let (host, program) = connect(&agent(), &listen());
    let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
    let send =
        |mut stream: Box<dyn Write + Send>, bytes: Vec<u8>| thread::spawn(move || stream.write_all(&bytes).unwrap());
    let senders = [
        send(Box::new(host.try_clone().unwrap()), bytes.clone()),
        send(Box::new(program.try_clone().unwrap()), bytes.clone()),
    ];
    let receive = |mut stream: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut got = vec![0; LEN];
            stream.read_exact(&mut got).unwrap();
            got
        })
    };
    let receivers = [receive(Box::new(host)), receive(Box::new(program))];
    assert!(receivers.into_iter().all(|receiver| receiver.join().unwrap() == bytes));
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn one_whose_reader_is_slow_holds_up_itself_alone_and_its_writer_waits() {
    let (agent, listener) = (agent(), listen());
    let (_slow, mut program) = connect(&agent, &listener);
    program.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    while let Ok(len) = program.write(&[0; 64 << 10]) {
        sent += len;
        assert!(sent < 64 << 20, "somebody keeps all of it");
    }
    let (mut host, mut program) = connect(&agent, &listener);
    program.write_all(b"quick").unwrap();
    drop(program);
    assert_eq!(text(&mut host), "quick");
}

#[test]
fn a_program_that_resets_is_no_clean_end() {
    let (agent, listener) = (agent(), listen());
    let (host, program) = connect(&agent, &listener);
    (&host).write_all(b"unread").unwrap();
    wait_until("it arrives", || program.peek(&mut [0; 8]).is_ok_and(|len| len > 0));
    drop(program); // With bytes unread, this is a reset.
    let mut end = Vec::new();
    (&host).read_to_end(&mut end).unwrap();
    assert!(is_closed_as_a_whole(&host));

    let (host, program) = connect(&agent, &listener);
    drop(program);
    (&host).read_to_end(&mut end).unwrap();
    assert!(!is_closed_as_a_whole(&host), "a clean end is one half's");
}

#[test]
fn a_host_that_goes_away_is_an_end_for_the_program_also_when_that_only_listens() {
    let (agent, listener) = (agent(), listen());
    let (host, mut program) = connect(&agent, &listener);
    drop(host);
    assert_eq!(text(&mut program), "");
    // Its own half has ended, too, although it never wrote: to write is a reset soon.
    wait_until("the program's writes fail", || program.write(b"event").is_err());

    let (host, program) = connect(&agent, &listener);
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(text(&mut &program), "");
    (&program).write_all(b"event").unwrap();
    (&host).read_exact(&mut [0; 5]).unwrap();
    drop(host);
    wait_until("the program's writes fail", || (&program).write(b"event").is_err());
}

/// A Unix socket that is closed with bytes unread resets the other side, like virtio-vsock in a child.
#[test]
fn a_connection_torn_by_a_fork_is_reset_for_the_program() {
    let (host, mut program) = connect(&agent(), &listen());
    program.write_all(b"unread").unwrap();
    let mut first = [0; 1];
    (&host).read_exact(&mut first).unwrap();
    drop(host);
    let error = program.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_thousand_idle_connections_take_no_place_of_programs_and_no_thread() {
    let (agent, listener) = (agent(), listen());
    connect(&agent, &listener);
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let mut held: Vec<_> = (0..1000).map(|_| connect(&agent, &listener)).collect();
    wait_until("the threads that asked are gone", || threads() <= before + 8);
    let into = tempfile::tempdir().unwrap();
    let put = Request::Put { path: into.path().display().to_string() };
    let programs: Vec<_> = (0..server::MAX_CONNECTIONS)
        .map(|_| {
            let (host, guest) = UnixStream::pair().unwrap();
            server::admit(&agent, guest.into());
            frame::write(&mut &host, &put).unwrap();
            host
        })
        .collect();
    for (host, program) in &mut held {
        host.write_all(b"a").unwrap();
        program.read_exact(&mut [0; 1]).unwrap();
    }
    drop(programs);

    held.extend((1000..MAX_FORWARDS).map(|_| connect(&agent, &listener)));
    let port = listener.local_addr().unwrap().port();
    let (reply, _host) = ask(&agent, port);
    let Some(Reply::Failed(failure)) = reply else { panic!("{reply:?}") };
    assert_eq!(failure.message, "the agent forwards 1024 connections already");
    // Programs that say nothing, and so do not notice that nobody hears them.
    let programs: Vec<_> = held.into_iter().map(|(_, program)| program).collect();
    wait_until("there is a place again", || ask(&agent, port).0 == Some(Reply::Done));
    drop(programs);
}
