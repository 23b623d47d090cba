//! Ports of the host that are ports of VMs. The programs "in" a VM listen on this computer's loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use pando_wire::api::{Published, State, Vm};
use serde_json::{Value, json};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::program::program;
use support::{Daemon, eventually, signal_kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);

/// Tries to boot a VM with these ports of the host.
async fn try_run(daemon: &Daemon, name: &str, ports: Value) -> (u16, Value) {
    let kernel = daemon.path().join("kernel");
    std::fs::write(&kernel, "no kernel").unwrap();
    let request = json!({"name": name, "image": daemon.image().await, "kernel": kernel, "publish": ports});
    let (status, body) = daemon.post("/vms", request).await;
    (status.as_u16(), body)
}

/// Boots a VM of which `guest_port` is a free port of the host: which.
async fn run(daemon: &Daemon, name: &str, guest_port: u16) -> (Vm, SocketAddr) {
    let (status, vm) = try_run(daemon, name, json!([{"guest_port": guest_port}])).await;
    assert_eq!(status, 200, "{vm}");
    let vm: Vm = serde_json::from_value(vm).unwrap();
    let at = vm.published[0].host();
    (vm, at)
}

/// One that says back what it hears, and goodbye when it has heard everything.
async fn echo() -> (u16, Arc<AtomicUsize>) {
    program(async |mut stream| {
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            let _ = stream.write_all(&buffer[..len]).await;
        }
        let _ = stream.write_all(b"goodbye").await;
    })
    .await
}

/// Says `words`, ends that half, and hears everything: how it ended, too.
async fn talk(at: SocketAddr, words: &str) -> io::Result<String> {
    let conversation = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(words.as_bytes()).await?;
        let _ = stream.shutdown().await; // Of one that was reset, reading says so.
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.map(|_| heard)
    };
    timeout(LIMIT, conversation).await.unwrap()
}

fn kind(result: io::Result<String>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// A port of the host that nobody has just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn published(at: SocketAddr, guest_port: u16) -> Published {
    Published { address: at.ip(), host_port: at.port(), guest_port, problem: None }
}

#[tokio::test]
async fn what_speaks_tcp_in_a_vm_is_reached_at_the_hosts_port_and_everything_says_where_that_is() {
    let daemon = Daemon::start().await;
    let (port, _) = echo().await;
    let chosen = free_port();
    let ports = json!([{"guest_port": port, "host_port": chosen}, {"guest_port": port, "address": "0.0.0.0"}]);
    let (status, vm) = try_run(&daemon, "web", ports).await;
    assert_eq!(status, 200, "{vm}");
    let vm: Vm = serde_json::from_value(vm).unwrap();
    let free = vm.published.iter().find(|port| port.address == Ipv4Addr::UNSPECIFIED).unwrap().host_port;
    let (own, any) = (SocketAddr::from(([127, 0, 0, 1], chosen)), SocketAddr::from(([0, 0, 0, 0], free)));
    assert_ne!(free, 0);
    assert_eq!(vm.published, [published(any, port), published(own, port)]);
    for at in [own, SocketAddr::from(([127, 0, 0, 1], free))] {
        assert_eq!(talk(at, "hello ").await.unwrap(), "hello goodbye", "{at}");
    }

    assert_eq!(daemon.vm("web").await.published, vm.published);
    assert_eq!(daemon.get("/vms").await.1[0]["published"], serde_json::to_value(&vm.published).unwrap());
    daemon.put("/vms/web/ports/1", json!({"public": false})).await;
    let (_, listed) = daemon.get("/vms/web/ports").await;
    let told: Vec<_> = listed.as_array().unwrap().iter().map(|port| (&port["port"], &port["host"])).collect();
    let (any, own) = (json!(any.to_string()), json!(own.to_string()));
    assert_eq!(told, [(&json!(1), &Value::Null), (&json!(port), &any), (&json!(port), &own)]);
}

#[tokio::test]
async fn a_port_that_another_has_is_refused_before_anything_is_made() {
    let daemon = Daemon::start().await;
    let (_, at) = run(&daemon, "web", 80).await;
    let (taken, free) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), free_port());
    let taken = taken.local_addr().unwrap();
    let before = daemon.belongings();
    for other in [taken, at] {
        // And the one that was free is given back.
        let ports = json!([{"guest_port": 80, "host_port": free}, {"guest_port": 81, "host_port": other.port()}]);
        let (status, body) = try_run(&daemon, "late", ports).await;
        assert_eq!((status, &body["error"]), (409, &json!(format!("cannot publish a port at {other}"))), "{body}");
        assert!(TcpListener::bind(("127.0.0.1", free)).await.is_ok());
    }
    assert_eq!(daemon.belongings().3, before.3);
    assert_eq!(daemon.get("/vms").await.1.as_array().unwrap().len(), 1);
    // As are those of a VM that is not made for another reason.
    let (status, _) = try_run(&daemon, "web", json!([{"guest_port": 80, "host_port": free}])).await;
    assert_eq!(status, 409, "the name is taken");
    assert!(TcpListener::bind(("127.0.0.1", free)).await.is_ok());
}

#[tokio::test]
async fn a_port_that_cannot_be_is_refused() {
    let daemon = Daemon::start().await;
    for ports in [
        json!([{"guest_port": 0}]),
        json!([{}]),
        json!([{"guest_port": 80, "host_port": 70000}]),
        json!([{"guest_port": 80, "address": "localhost"}]),
        json!([{"guest_port": 80, "address": "192.0.2.1"}]),
        json!([{"guest_port": 80, "host_port": 9}, {"guest_port": 81, "host_port": 9}]),
        json!(vec![json!({"guest_port": 80}); 65]),
    ] {
        let (status, body) = try_run(&daemon, "web", ports.clone()).await;
        assert_eq!(status, 400, "{ports}: {body}");
    }
    assert_eq!(daemon.get("/vms").await.1, json!([]));
}

#[tokio::test]
async fn a_vm_that_sleeps_wakes_for_who_connects_and_one_that_is_stopped_resets_them() {
    let daemon = Daemon::start().await;
    let (port, count) = echo().await;
    let (_, at) = run(&daemon, "web", port).await;
    daemon.post("/vms/web/hibernate", Value::Null).await;
    assert_eq!(daemon.vm("web").await.state, State::Hibernated);
    assert_eq!(talk(at, "hello ").await.unwrap(), "hello goodbye");
    assert_eq!(daemon.vm("web").await.state, State::Running);

    for what in ["pause", "kill"] {
        daemon.post(&format!("/vms/web/{what}"), Value::Null).await;
        let start = Instant::now();
        assert_eq!(kind(talk(at, "hello ").await), ErrorKind::ConnectionReset, "{what}");
        assert!(start.elapsed() < Duration::from_secs(5), "at once: {what}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    daemon.post("/vms/web/start", Value::Null).await;
    assert_eq!(talk(at, "again ").await.unwrap(), "again goodbye");
}

#[tokio::test]
async fn a_server_that_begins_to_listen_within_ten_seconds_is_waited_for_and_then_the_client_is_reset() {
    let daemon = Daemon::start().await;
    let (late, never) = (free_port(), free_port());
    let ports = json!([{"guest_port": late}, {"guest_port": never}]);
    let (_, vm) = try_run(&daemon, "web", ports).await;
    let vm: Vm = serde_json::from_value(vm).unwrap();
    let at = |port| vm.published.iter().find(|published| published.guest_port == port).unwrap().host();
    let served = async {
        sleep(Duration::from_secs(1)).await;
        let listener = TcpListener::bind(("127.0.0.1", late)).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"here").await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    };
    let start = Instant::now();
    let (heard, reset, ()) = tokio::join!(talk(at(late), ""), talk(at(never), ""), served);
    assert_eq!(heard.unwrap(), "here");
    assert_eq!(kind(reset), ErrorKind::ConnectionReset);
    assert!((Duration::from_secs(8)..Duration::from_secs(15)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_port_is_its_vms_until_that_is_removed_and_each_daemon_takes_it_again() {
    let mut daemon = Daemon::start().await;
    let (port, _) = echo().await;
    let (vm, at) = run(&daemon, "web", port).await;
    daemon.stop().await;
    assert_eq!(kind(talk(at, "").await), ErrorKind::ConnectionRefused, "nobody listens without a daemon");

    let other = TcpListener::bind(at).await.unwrap();
    daemon.start_again().await;
    let shown = daemon.vm("web").await.published;
    let problem = shown[0].problem.as_ref().unwrap();
    assert!(problem.starts_with(&format!("cannot listen on {at}: ")), "{problem}");
    assert_eq!(daemon.get("/vms/web/ports").await.1[0]["problem"], json!(problem));
    drop(other);
    eventually("it is tried again", async || daemon.vm("web").await.published == vm.published).await;
    assert_eq!(talk(at, "hello ").await.unwrap(), "hello goodbye");

    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(daemon.vm("web").await.published, vm.published);
    let mut open = TcpStream::connect(at).await.unwrap();
    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut [0; 1]).await.unwrap();
    daemon.delete("/vms/web?force=true").await;
    assert_eq!(kind(talk(at, "").await), ErrorKind::ConnectionRefused);
    let end = timeout(LIMIT, open.read(&mut [0; 1])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Nothing of it is left, also not in the database.
    daemon.stop().await;
    daemon.start_again().await;
    assert!(TcpListener::bind(at).await.is_ok());
}

#[tokio::test]
async fn a_child_has_no_ports_of_its_parents_and_a_vm_from_a_checkpoint_has_those_that_it_is_given() {
    let daemon = Daemon::start().await;
    let (port, _) = echo().await;
    let (_, at) = run(&daemon, "web", port).await;
    daemon.fork("web", &["fork"]).await;
    assert_eq!(daemon.vm("fork").await.published, []);
    daemon.post("/vms/web/checkpoint", json!({"name": "warm"})).await;
    daemon.post("/checkpoints/warm/run", json!({"children": [{"name": "plain"}]})).await;
    assert_eq!(daemon.vm("plain").await.published, []);

    let child = json!({"name": "given", "publish": [{"guest_port": port}]});
    let (status, body) = daemon.post("/checkpoints/warm/run", json!({"children": [child]})).await;
    assert_eq!(status, 200, "{body}");
    let given = daemon.vm("given").await.published[0].host();
    assert_ne!(given, at);
    assert_eq!(talk(given, "hello ").await.unwrap(), "hello goodbye");

    let child = json!({"name": "late", "publish": [{"guest_port": port, "host_port": at.port()}]});
    let (status, body) = daemon.post("/checkpoints/warm/run", json!({"children": [child]})).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(daemon.get("/vms/late").await.0, 404);
    assert_eq!(talk(at, "hello ").await.unwrap(), "hello goodbye");
}

#[tokio::test]
async fn what_broke_in_the_vm_is_a_reset_also_for_who_had_said_everything() {
    for has_ended in [false, true] {
        let daemon = Daemon::start().await;
        let (port, _) = program(async |mut stream| {
            stream.write_all(b"half").await.unwrap();
            sleep(LIMIT).await;
        })
        .await;
        let (vm, at) = run(&daemon, "web", port).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        if has_ended {
            client.shutdown().await.unwrap();
        }
        client.read_exact(&mut [0; 4]).await.unwrap();
        sleep(Duration::from_millis(100)).await; // So that the daemon knows of its end.
        signal_kill(vm.pid.unwrap());
        let end = timeout(LIMIT, client.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "its half had ended: {has_ended}");
    }
}

#[tokio::test]
async fn a_program_that_breaks_off_is_a_reset_and_a_client_that_does_is_gone_for_the_program() {
    let daemon = Daemon::start().await;
    let (told, mut gone) = tokio::sync::mpsc::channel(2);
    let (port, _) = program(move |mut stream| {
        let told = told.clone();
        async move {
            let word = stream.read_u8().await.unwrap();
            if word == b'x' {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                return;
            }
            let _ = stream.read(&mut [0; 1]).await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let (_, at) = run(&daemon, "web", port).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let end = timeout(LIMIT, client.read(&mut [0; 1])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);

    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(b"y").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    timeout(LIMIT, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_quiet_connection_keeps_no_vm_awake_and_one_that_carries_something_does() {
    let daemon = Daemon::start().await;
    let (port, _) = echo().await;
    let (_, at) = run(&daemon, "web", port).await;
    daemon.put("/settings/idle-timeout", json!({"value": "1s"})).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    for _ in 0..14 {
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(daemon.vm("web").await.state, State::Running);
        sleep(Duration::from_millis(200)).await;
    }
    eventually("it falls asleep", async || daemon.vm("web").await.state == State::Hibernated).await;
    let end = timeout(LIMIT, client.read(&mut [0; 1])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(daemon.vm("web").await.state, State::Hibernated, "that it broke wakes nobody");
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_server_and_no_memory() {
    let daemon = Daemon::start().await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let (port, _) = program(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            while let Ok(len) = stream.write(&[7; 64 << 10]).await {
                count.fetch_add(len, Ordering::SeqCst);
            }
        }
    })
    .await;
    let (_, at) = run(&daemon, "web", port).await;
    let _client = TcpStream::connect(at).await.unwrap();
    let mut last = 0;
    eventually("it is held up", async || {
        sleep(Duration::from_secs(1)).await;
        let now = written.load(Ordering::SeqCst);
        now > 0 && std::mem::replace(&mut last, now) == now
    })
    .await;
    eprintln!("{} KiB went before the client read", last >> 10);
    assert!(last < 48 << 20, "{last}");
}

#[tokio::test]
async fn a_daemon_that_ends_lets_what_is_under_way_end_and_resets_what_is_quiet() {
    let mut daemon = Daemon::start().await;
    let (busy, _) = program(async |mut stream| {
        for _ in 0..20 {
            stream.write_all(b"more").await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let (idle, _) = echo().await;
    let ports = json!([{"guest_port": busy}, {"guest_port": idle}]);
    let vm: Vm = serde_json::from_value(try_run(&daemon, "web", ports).await.1).unwrap();
    let at = |port| vm.published.iter().find(|published| published.guest_port == port).unwrap().host();
    let mut quiet = TcpStream::connect(at(idle)).await.unwrap();
    quiet.write_all(b"x").await.unwrap();
    quiet.read_exact(&mut [0; 1]).await.unwrap();
    let mut stream = TcpStream::connect(at(busy)).await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();

    let whole = async {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.map(|_| heard.len())
    };
    let (heard, ()) = tokio::join!(whole, async { timeout(Duration::from_secs(9), daemon.stop()).await.unwrap() });
    assert_eq!(heard.unwrap(), 19 * 4);
    let end = timeout(LIMIT, quiet.read(&mut [0; 1])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(kind(talk(at(busy), "").await), ErrorKind::ConnectionRefused);
}
