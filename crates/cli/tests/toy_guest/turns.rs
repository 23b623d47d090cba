//! Page servers of one store take turns at what nobody waits for. No guest: who asks is this test.

use crate::{LIMIT, PANDO};
use pando_bench::serve;
use pando_store::{Checkpoint, Kind, Machine, PAGE_BYTES, Store};
use pando_wire::pages::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a server to give a turn that it should not.
const A_WHILE: Duration = Duration::from_millis(500);

/// A page server, and connections to it.
struct Server(Child, Vec<Client<UnixStream>>);

impl Server {
    fn start(store: &Path) -> Self {
        let server = serve(PANDO.as_ref(), store, "vm").unwrap();
        let mut clients: Vec<_> = server.connections.into_iter().map(Client::new).collect();
        clients[0].describe().unwrap();
        Self(server.process, clients)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Asks for a turn, and says when it begins.
    fn asks(&mut self) -> Receiver<Client<UnixStream>> {
        let (tell, told) = channel();
        let mut client = self.1.pop().unwrap();
        thread::spawn(move || {
            client.begin_turn().unwrap();
            tell.send(client).unwrap();
        });
        told
    }

    /// The hurried: pages, whoever's turn it is.
    fn is_answered(&mut self) -> bool {
        self.1[0].memory(&[(0, 1), (2, 1)]).unwrap();
        (0..2).all(|_| self.1[0].pages(1).unwrap()[0].pages == 1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.1.clear();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A store with a machine of a few pages of zeroes.
fn store(dir: &Path) {
    let store = Store::create(dir).unwrap();
    let writer = store.writer().unwrap();
    let [memory, disk] = [Kind::Memory, Kind::Disk].map(|kind| {
        let mut layer = writer.layer(kind, 4).unwrap();
        layer.write(1, &[7; PAGE_BYTES]).unwrap();
        layer.finish().unwrap()
    });
    let [kind, arch] = ["k", "a"].map(str::to_owned);
    let machine = Machine { kind, version: 1, arch, cpu_features: Vec::new(), state: Vec::new() };
    let memory = Some(memory);
    writer.publish(&Checkpoint { name: "vm".into(), created_ms: 1, machine, memory, disks: vec![disk] }).unwrap();
}

#[test]
fn a_turn_is_waited_for_and_its_end_is_seen_however_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let [mut one, mut other, mut third] = [(); 3].map(|()| Server::start(dir.path()));
    let mut turn = one.asks().recv_timeout(LIMIT).unwrap();
    let waits = other.asks();
    assert!(waits.recv_timeout(A_WHILE).is_err(), "two at a time");
    assert!(other.is_answered());
    turn.end_turn().unwrap();
    let turn = waits.recv_timeout(LIMIT).unwrap();

    let waits = one.asks();
    assert!(waits.recv_timeout(A_WHILE).is_err());
    drop(turn);
    let _turn = waits.recv_timeout(LIMIT).unwrap();

    let waits = third.asks();
    assert!(waits.recv_timeout(A_WHILE).is_err());
    one.signal(Signal::KILL);
    waits.recv_timeout(LIMIT).unwrap();
}

#[test]
fn who_has_a_turn_and_stands_still_keeps_nobody_waiting_for_long() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let [mut one, mut other] = [(); 2].map(|()| Server::start(dir.path()));
    let _turn = one.asks().recv_timeout(LIMIT).unwrap();
    one.signal(Signal::STOP);
    assert!(other.is_answered());
    for _ in 0..3 {
        // Its connection goes with the first turn.
        other.asks().recv_timeout(LIMIT).unwrap();
        assert!(other.is_answered());
    }
}

#[test]
fn a_server_whose_monitor_waits_for_a_turn_and_dies_ends() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let [mut one, mut other] = [(); 2].map(|()| Server::start(dir.path()));
    let _turn = one.asks().recv_timeout(LIMIT).unwrap();
    let asks = other.1.pop().unwrap();
    pando_wire::frame::write(&mut asks.stream(), &pando_wire::pages::Ask::BeginTurn).unwrap();
    thread::sleep(A_WHILE);
    drop(asks);
    other.1.clear();
    let since = Instant::now();
    let status = loop {
        if let Some(status) = other.0.try_wait().unwrap() {
            break status;
        }
        assert!(since.elapsed() < LIMIT, "it waits for ever");
        thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
}
