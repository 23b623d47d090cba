//! What listens in VMs, as a browser sees it. The programs "in" a VM listen on this computer's loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pando_wire::api::{Port, State};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::program::program;
use support::{Daemon, eventually, signal_kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);

/// A daemon that serves previews, and where.
async fn daemon() -> (Daemon, SocketAddr) {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    // Not 0: a daemon that is started again is to be found where it was.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    daemon.config.previews = Some(address);
    daemon.start_again().await;
    (daemon, address)
}

async fn open(daemon: &Daemon, vm: &str, port: u16, public: bool) -> Port {
    let (status, body) = daemon.put(&format!("/vms/{vm}/ports/{port}"), json!({"public": public})).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body).unwrap()
}

/// One that answers every request with `answer`, and keeps what it was sent. What was smuggled would be there, too.
async fn answering(answer: &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let (port, _) = program(move |mut stream| {
        let kept = Arc::clone(&kept);
        async move {
            loop {
                let request = whole(&mut stream).await;
                if request.is_empty() {
                    return;
                }
                kept.lock().unwrap().push(request);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (port, asked)
}

/// A request with its body; empty when nothing more comes.
async fn whole(stream: &mut TcpStream) -> String {
    let mut request = head(stream).await;
    let len = field(&request, "content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.unwrap();
    request.push_str(&String::from_utf8_lossy(&body));
    if field(&request, "transfer-encoding").is_some() {
        while !request.ends_with("0\r\n\r\n") {
            request.push(char::from(stream.read_u8().await.unwrap()));
        }
    }
    request
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Kept: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\nhello";

/// Everything up to the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Sends `request` as it is, and reads until the end: how it ended, too.
async fn raw(address: SocketAddr, request: &[u8]) -> (String, std::io::Result<()>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await; // It may be refused before all was sent.
    let mut answer = Vec::new();
    let end = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap().map(drop);
    (String::from_utf8_lossy(&answer).into_owned(), end)
}

/// A request for `vm`, on a connection that ends with its answer.
async fn get(address: SocketAddr, vm: &str, port: u16, path: &str, headers: &str) -> String {
    let host = format!("{port}-{vm}.localhost:{}", address.port());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    raw(address, request.as_bytes()).await.0
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_port_is_seen_under_the_name_of_its_vm() {
    let (daemon, address) = daemon().await;
    let vm = daemon.run("web").await;
    let (port, asked) = answering(HELLO).await;
    let opened = open(&daemon, "web", port, true).await;
    assert_eq!(opened.url, Some(format!("http://{port}-web.localhost:{}/", address.port())));

    let claims =
        "X-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-Own: 1\r\nCookie: a=1\r\nExpect: 100-continue\r\n";
    let answer = get(address, "web", port, "/a/b?c=d&e", claims).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert_eq!((field(&answer, "x-kept"), field(&answer, "x-hop")), (Some("1"), None));
    let request = asked.lock().unwrap()[0].clone();
    assert!(request.starts_with("GET /a/b?c=d&e HTTP/1.1\r\n"), "{request}");
    let host = format!("{port}-web.localhost:{}", address.port());
    for (name, value) in [
        ("host", Some(&*host)),
        ("x-forwarded-host", Some(&*host)),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-own", Some("1")),
        ("cookie", Some("a=1")),
        ("connection", None),
        ("forwarded", None),
        ("expect", None),
    ] {
        assert_eq!(field(&request, name), value, "{name} in {request}");
    }

    assert!(get(address, &vm.id, port, "/", "").await.ends_with("hello"), "by its id");
    let host = format!("{port}-WEB.LocalHost");
    let (answer, _) =
        raw(address, format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await;
    assert!(status(&answer) == 200 && answer.ends_with("\r\n\r\n"), "{answer}");
    let post = format!("POST /p HTTP/1.0\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(status(&raw(address, post.as_bytes()).await.0), 200);
    assert!(asked.lock().unwrap().last().unwrap().ends_with("\r\n\r\nbody"));
    let chunked = format!(
        "POST /p HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    );
    assert_eq!(status(&raw(address, chunked.as_bytes()).await.0), 200);
    assert!(asked.lock().unwrap().last().unwrap().ends_with("4\r\nbody\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn http_2_is_spoken_by_who_begins_with_it_and_several_requests_share_a_connection() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, asked) = answering(HELLO).await;
    open(&daemon, "web", port, true).await;
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = |path: &str| {
        let uri = format!("http://{port}-web.localhost{path}");
        let request = Request::get(uri).header("cookie", "a=1").header("cookie", "b=2");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let mut sender = sender.clone();
        async move {
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap().to_bytes()
        }
    };
    let answers = join_all((0..20).map(|number| request(&format!("/{number}")))).await;
    assert!(answers.iter().all(|answer| answer == "hello"));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 20);
    assert_eq!(field(&asked[0], "host").unwrap(), format!("{port}-web.localhost"));
    assert_eq!(field(&asked[0], "cookie"), Some("a=1; b=2"));
}

#[tokio::test]
async fn a_clients_requests_share_a_connection_to_the_guest_and_none_is_lost_when_the_server_ends_it() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    // Ends a connection when the fourth request is there.
    let (port, connections) = program(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            for _ in 0..3 {
                if whole(&mut stream).await.is_empty() {
                    break;
                }
                stream.write_all(HELLO.as_bytes()).await.unwrap();
            }
            whole(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    open(&daemon, "web", port, true).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut ask = async |method: &str, more: &str| {
        let request = format!("{method} / HTTP/1.1\r\nHost: {port}-web.localhost\r\n{more}");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = timeout(LIMIT, head(&mut client)).await.unwrap();
        let mut body = vec![0; field(&answer, "content-length").unwrap().parse().unwrap()];
        client.read_exact(&mut body).await.unwrap();
        (status(&answer), connections.load(Ordering::SeqCst))
    };
    for _ in 0..3 {
        assert_eq!(ask("GET", "\r\n").await, (200, 1));
    }
    assert_eq!(ask("GET", "\r\n").await, (200, 2), "made again");
    assert_eq!(ask("POST", "Content-Length: 4\r\n\r\nbody").await, (200, 3), "never made twice");
    assert_eq!(ask("GET", "\r\n").await, (200, 3));

    assert_eq!(daemon.post("/vms/web/pause", json!({})).await.0, 200);
    assert_eq!(ask("GET", "\r\n").await, (503, 3), "nobody would answer");
    assert_eq!(daemon.post("/vms/web/resume", json!({})).await.0, 200);
    assert_eq!(ask("GET", "\r\n").await, (200, 4));
    let before = Instant::now();
    while ended.load(Ordering::SeqCst) < 4 {
        assert!(before.elapsed() < LIMIT, "it waits for a request for ever");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    assert_eq!(ask("GET", "\r\n").await, (200, 5));
}

#[tokio::test]
async fn a_private_port_is_for_who_has_its_token_which_the_guest_never_sees() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, asked) = answering(HELLO).await;
    assert_eq!(status(&get(address, "web", port, "/", "").await), 401, "a port that was never opened");

    let opened = open(&daemon, "web", port, false).await;
    let token = opened.token.clone().unwrap();
    assert_eq!(token.len(), 32);
    assert_eq!(opened.url, Some(format!("http://{port}-web.localhost:{}/?pando-token={token}", address.port())));
    assert_eq!(status(&get(address, "web", port, "/", "").await), 401);
    assert_eq!(status(&get(address, "web", port, "/", "Cookie: pando-token=x\r\nPando-Token: y\r\n").await), 401);
    assert_eq!(asked.lock().unwrap().len(), 0, "who is not let in does not reach the guest");

    let answer = get(address, "web", port, &format!("/a?b=c&pando-token={token}"), "").await;
    assert_eq!((status(&answer), field(&answer, "location")), (303, Some("/a?b=c")));
    let cookie = field(&answer, "set-cookie").unwrap();
    assert_eq!(cookie, format!("pando-token={token}; Path=/; HttpOnly; SameSite=Lax"));
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(status(&get(address, "web", port, "/a?b=c", &format!("Cookie: z=1; {cookie}\r\n")).await), 200);
    assert_eq!(status(&get(address, "web", port, "/", &format!("Pando-Token: {token}\r\n")).await), 200);
    let theft = format!("Cookie: {cookie}\r\nOrigin: http://{port}-web.1.localhost:{}\r\n", address.port());
    assert_eq!(status(&get(address, "web", port, "/", &theft).await), 401, "a page of another VM");
    assert!(!asked.lock().unwrap().concat().contains(&token));
    assert_eq!(field(&asked.lock().unwrap()[0], "cookie"), Some("z=1"));

    // What was granted of one is not granted of another.
    let (other, _) = answering(HELLO).await;
    open(&daemon, "web", other, false).await;
    assert_eq!(status(&get(address, "web", other, "/", &format!("Pando-Token: {token}\r\n")).await), 401);
    assert_eq!(open(&daemon, "web", port, false).await, opened, "a URL that was given stays one");
    let listed = daemon.get("/vms/web/ports").await.1;
    assert_eq!(listed.as_array().unwrap().len(), 2);

    let path = format!("/vms/web/ports/{port}");
    assert_eq!(daemon.delete(&path).await.0, 204);
    assert_eq!(daemon.delete(&path).await.0, 404);
    assert_ne!(open(&daemon, "web", port, false).await.token.unwrap(), token);
    assert_eq!(status(&get(address, "web", port, "/", &format!("Pando-Token: {token}\r\n")).await), 401);
}

#[tokio::test]
async fn a_fork_answers_under_its_own_name_and_is_private_at_first() {
    let (mut daemon, address) = daemon().await;
    daemon.run("base").await;
    let (port, asked) = answering(HELLO).await;
    open(&daemon, "base", port, true).await;
    daemon.fork("base", &["base.1"]).await;
    assert_eq!(daemon.get("/vms/base.1/ports").await.1, json!([]));
    assert_eq!(status(&get(address, "base.1", port, "/", "").await), 401);
    let token = open(&daemon, "base.1", port, false).await.token.unwrap();
    for vm in ["base", "base.1"] {
        assert_eq!(status(&get(address, vm, port, "/", &format!("Pando-Token: {token}\r\n")).await), 200, "{vm}");
    }
    let hosts: Vec<_> = asked.lock().unwrap().iter().map(|asked| field(asked, "host").unwrap().to_owned()).collect();
    assert_eq!(hosts, ["base", "base.1"].map(|vm| format!("{port}-{vm}.localhost:{}", address.port())));
    assert_eq!(asked.lock().unwrap().concat().matches(&token).count(), 0);

    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(status(&get(address, "base", port, "/", "").await), 200, "also of the next daemon");
    assert_eq!(status(&get(address, "base.1", port, "/", "").await), 401);
}

#[tokio::test]
async fn a_thousand_requests_at_a_vm_that_sleeps_wake_it_once_and_are_answered() {
    let (daemon, address) = daemon().await;
    let vm = daemon.run("web").await;
    let (port, _) = answering(HELLO).await;
    open(&daemon, "web", port, true).await;
    assert_eq!(daemon.post("/vms/web/hibernate", Value::Null).await.0, 200);
    assert_eq!(status(&get(address, "web", 1, "/", "").await), 401);
    assert_eq!(daemon.vm("web").await.state, State::Hibernated, "who is not let in wakes nobody");

    let start = Instant::now();
    let answers = join_all((0..1000).map(|_| get(address, "web", port, "/", ""))).await;
    eprintln!("1000 requests at a sleeping VM: {:?}", start.elapsed());
    let refused = answers.iter().find(|answer| status(answer) != 200);
    assert_eq!(refused, None);
    let (_, events) = daemon.get("/events").await;
    let events = events.as_str().unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let woken = events.filter(|event| event["vm"] == vm.id && event["detail"] == "woken").count();
    assert_eq!(woken, 1);
}

#[tokio::test]
async fn a_request_wakes_a_vm_that_falls_asleep_at_that_moment() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, _) = answering(HELLO).await;
    open(&daemon, "web", port, true).await;
    for _ in 0..5 {
        let (slept, answer) =
            tokio::join!(daemon.post("/vms/web/hibernate", Value::Null), get(address, "web", port, "/", ""));
        assert_eq!((slept.0.as_u16(), status(&answer)), (200, 200), "{slept:?} {answer}");
        get(address, "web", port, "/", "").await; // It may have fallen asleep last.
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_page_that_says_why_and_what_to_do() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    for vm in ["down", "stands"] {
        daemon.run(vm).await;
        open(&daemon, vm, 80, true).await;
    }
    daemon.post("/vms/down/kill", Value::Null).await;
    daemon.post("/vms/stands/pause", Value::Null).await;
    for (host, code, words) in [
        ("80-gone.localhost", 404, "no VM is called gone"),
        ("80-down.localhost", 503, "pando start down"),
        ("80-stands.localhost", 503, "pando resume stands"),
        ("80-web.localhost", 401, "pando port web 80"),
        ("web.localhost", 404, "http://PORT-VM.localhost"),
        ("localhost", 404, "http://PORT-VM.localhost"),
        ("0-web.localhost", 404, "no port of a VM"),
        ("127.0.0.1:7080", 421, "not served here"),
        ("80-web.localhost.evil.example", 421, "not served here"),
        ("80-web.rebound.example", 421, "not served here"),
        ("80-web.localhost:x", 400, "no possible host"),
        ("u@80-web.localhost", 400, "no possible host"),
    ] {
        for (accept, kind) in [("text/html,*/*", "text/html"), ("*/*", "text/plain")] {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: {accept}\r\n\r\n");
            let (answer, _) = raw(address, request.as_bytes()).await;
            assert_eq!(status(&answer), code, "{host}: {answer}");
            assert!(answer.contains(words), "{host}: {answer}");
            assert!(field(&answer, "content-type").unwrap().starts_with(kind), "{host}: {answer}");
        }
    }
    let old = daemon.run("old").await;
    open(&daemon, &old.name, 80, true).await;
    let answer = get(address, "old", 80, "/", "").await;
    assert!(status(&answer) == 502 && answer.contains("of an older build"), "{answer}");
}

#[tokio::test]
async fn who_comes_before_the_server_waits_for_it() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    open(&daemon, "web", port, true).await;
    let early = tokio::spawn(async move { get(address, "web", port, "/", "").await });
    sleep(Duration::from_millis(700)).await;
    assert!(!early.is_finished());
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    head(&mut stream).await;
    stream.write_all(HELLO.as_bytes()).await.unwrap();
    assert_eq!(status(&early.await.unwrap()), 200);
    drop((listener, stream));

    let start = Instant::now();
    let answer = get(address, "web", port, "/", "Accept: text/html\r\n").await;
    let waited = start.elapsed();
    assert_eq!(status(&answer), 502);
    assert!(
        answer.contains(&format!("nobody listens on port {port} of web")) && answer.contains("refresh"),
        "{answer}"
    );
    assert!((Duration::from_secs(8)..Duration::from_secs(14)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn events_are_passed_on_at_once_and_an_end_of_the_client_is_one_for_the_server() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let (port, _) = program(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    open(&daemon, "web", port, true).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {port}-web.localhost\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    while !heard.contains("data: 1") {
        heard.push(char::from(timeout(LIMIT, client.read_u8()).await.unwrap().unwrap()));
    }
    drop(client);
    timeout(LIMIT, ended.recv()).await.unwrap().unwrap();
}

/// A program that agrees to speak `echo`, and then does, until the other half ends; it says goodbye after that.
async fn echo() -> (u16, Arc<AtomicUsize>) {
    program(async |mut stream| {
        let head = head(&mut stream).await;
        assert_eq!(field(&head, "upgrade"), Some("websocket"));
        assert_eq!(field(&head, "sec-websocket-key"), Some("a2V5"));
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\nready";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..len]).await.unwrap();
        }
        let _ = stream.write_all(b"goodbye").await;
    })
    .await
}

async fn upgrade(address: SocketAddr, port: u16) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /socket HTTP/1.1\r\nHost: {port}-web.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: a2V5\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = timeout(LIMIT, head(&mut client)).await.unwrap();
    assert_eq!(
        (status(&answer), field(&answer, "upgrade"), field(&answer, "x-own")),
        (101, Some("websocket"), Some("1"))
    );
    client.read_exact(&mut [0; 5]).await.unwrap(); // What comes with the answer is not lost.
    client
}

#[tokio::test]
async fn a_web_socket_carries_bytes_both_ways_and_its_halves_end_by_themselves() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, _) = echo().await;
    open(&daemon, "web", port, true).await;
    let mut client = upgrade(address, port).await;
    for word in ["one", "two"] {
        client.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        timeout(LIMIT, client.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, word.as_bytes());
    }
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(LIMIT, client.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "goodbye");
}

#[tokio::test]
async fn an_idle_web_socket_keeps_no_vm_awake_and_one_that_is_used_does_and_so_does_a_request() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, _) = echo().await;
    let (slow, _) = program(async |mut stream| {
        head(&mut stream).await;
        sleep(Duration::from_secs(3)).await;
        let _ = stream.write_all(HELLO.as_bytes()).await;
    })
    .await;
    for port in [port, slow] {
        open(&daemon, "web", port, true).await;
    }
    daemon.put("/settings/idle-timeout", json!({"value": "1s"})).await;
    let stays = async |what: &str, ms| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(ms) {
            assert_eq!(daemon.vm("web").await.state, State::Running, "{what}, after {:?}", start.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (answer, ()) = tokio::join!(get(address, "web", slow, "/", ""), stays("a request", 2800));
    assert_eq!(status(&answer), 200);

    let mut client = upgrade(address, port).await;
    let talk = async {
        for _ in 0..14 {
            client.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0; 1]).await.unwrap();
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(talk, stays("a web socket", 2800));

    eventually("it falls asleep", async || daemon.vm("web").await.state == State::Hibernated).await;
    // And the connection is gone, as it does not survive that.
    assert!(!matches!(timeout(LIMIT, client.read(&mut [0; 1])).await.unwrap(), Ok(1..)));
}

#[tokio::test]
async fn a_large_upload_streams_and_waits_for_a_server_that_does_not_read() {
    const LEN: usize = 64 << 20;
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let (port, _) = program(move |mut stream| {
        let mut gone = gone.clone();
        async move {
            head(&mut stream).await;
            gone.wait_for(|go| *go).await.unwrap();
            let (mut left, mut sum, mut buffer) = (LEN, 0u64, vec![0; 64 << 10]);
            while left > 0 {
                let len = stream.read(&mut buffer).await.unwrap();
                assert!(len > 0);
                left -= len;
                sum += buffer[..len].iter().map(|&byte| u64::from(byte)).sum::<u64>();
            }
            let sum = sum.to_string();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sum}", sum.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
        }
    })
    .await;
    open(&daemon, "web", port, true).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("PUT / HTTP/1.1\r\nHost: {port}-web.localhost\r\nContent-Length: {LEN}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let chunk = [1; 64 << 10];
    let mut sent = 0;
    while let Ok(len) = timeout(Duration::from_secs(2), client.write(&chunk)).await {
        sent += len.unwrap();
        assert!(sent < 48 << 20, "somebody keeps all of it");
    }
    eprintln!("{} KiB went before the server read", sent >> 10);
    go.send(true).unwrap();
    while sent < LEN {
        let len = chunk.len().min(LEN - sent);
        sent += client.write(&chunk[..len]).await.unwrap();
    }
    let answer = timeout(LIMIT, head(&mut client)).await.unwrap();
    assert_eq!(status(&answer), 200);
    let mut sum = String::new();
    client.take(field(&answer, "content-length").unwrap().parse().unwrap()).read_to_string(&mut sum).await.unwrap();
    assert_eq!(sum, LEN.to_string());
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_server_and_no_memory() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let (port, _) = program(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
            while let Ok(len) = stream.write(&[7; 64 << 10]).await {
                count.fetch_add(len, Ordering::SeqCst);
            }
        }
    })
    .await;
    open(&daemon, "web", port, true).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {port}-web.localhost\r\n\r\n").as_bytes()).await.unwrap();
    head(&mut client).await;
    let mut last = 0;
    eventually("it is held up", async || {
        sleep(Duration::from_secs(1)).await;
        let now = written.load(Ordering::SeqCst);
        std::mem::replace(&mut last, now) == now
    })
    .await;
    eprintln!("{} KiB went before the client read", last >> 10);
    assert!(last < 48 << 20, "{last}");
}

#[tokio::test]
async fn what_is_cut_short_never_looks_whole() {
    for (name, answer) in [
        ("counted", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"),
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("until-the-end", "HTTP/1.0 200 OK\r\n\r\nhalf"),
    ] {
        for version in ["1.0", "1.1"] {
            let (daemon, address) = daemon().await;
            let vm = daemon.run("web").await;
            let (port, _) = program(async |mut stream| {
                head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
                sleep(LIMIT).await;
            })
            .await;
            open(&daemon, "web", port, true).await;
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = format!("GET / HTTP/{version}\r\nHost: {port}-web.localhost\r\nConnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(4).any(|window| window == b"half") {
                heard.push(timeout(LIMIT, client.read_u8()).await.unwrap().unwrap());
            }
            signal_kill(vm.pid.unwrap());
            let end = timeout(LIMIT, client.read_to_end(&mut heard)).await.unwrap();
            assert!(end.is_err(), "{name} {version}: {}", String::from_utf8_lossy(&heard));
        }
    }
}

#[tokio::test]
async fn what_two_servers_would_read_as_different_requests_reaches_the_guest_once_or_never() {
    let (daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, asked) = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    open(&daemon, "web", port, true).await;
    let host = format!("{port}-web.localhost");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let len = smuggled.len();
    let cases = [
        (
            "both lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "both, the other way",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nContent-Length: {len}\r\n\r\n{smuggled}"),
        ),
        ("lengths in a list", format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0, {len}\r\n\r\n{smuggled}")),
        (
            "a length with a sign",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +{len}\r\n\r\n{smuggled}"),
        ),
        (
            "a coding that is none",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        (
            "chunked is not last",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "a chunk of no size",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{smuggled}"),
        ),
        (
            "a chunk too long",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "a chunk over 64 bits",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{smuggled}"
            ),
        ),
        ("bare line feeds", format!("POST / HTTP/1.1\nHost: {host}\nX: 1\nContent-Length: 0\n\n{smuggled}")),
        (
            "a folded line",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nX: 1\r\n Content-Length: {len}\r\n\r\n{smuggled}"),
        ),
        (
            "a space before the colon",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length : {len}\r\n\r\n{smuggled}"),
        ),
        (
            "a return within a line",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nX: 1\rContent-Length: {len}\r\n\r\n{smuggled}"),
        ),
        ("a zero byte", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: a\0b\r\n\r\n{smuggled}")),
        (
            "another host in the target",
            format!("GET http://80-gone.localhost/ HTTP/1.1\r\nHost: {host}\r\n\r\n{smuggled}"),
        ),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: 80-gone.localhost\r\n\r\n{smuggled}")),
        ("no host", format!("GET / HTTP/1.1\r\n\r\n{smuggled}")),
        ("an empty host", format!("GET / HTTP/1.1\r\nHost:\r\n\r\n{smuggled}")),
        ("a tunnel", format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n{smuggled}")),
        (
            "an upgrade to HTTP/2",
            format!(
                "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n{smuggled}"
            ),
        ),
    ];
    let mut passed = Vec::new();
    for (what, request) in cases {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // What is taken may be followed by a second request, which has its own answer.
        let _ = timeout(Duration::from_millis(600), stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let reached = std::mem::take(&mut *asked.lock().unwrap());
        assert!(reached.len() <= 1, "{what}: {reached:?}");
        for request in &reached {
            let (head, body) = request.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {request:?}"));
            assert!(!request.contains("smuggled"), "{what}: {request}");
            let both = field(head, "content-length").is_some() && field(head, "transfer-encoding").is_some();
            assert!(!both && (body.is_empty() || body == "0\r\n\r\n"), "{what}: {request}");
            assert_eq!(field(head, "host"), Some(&*host), "{what}: {request}");
            passed.push(what);
        }
        assert!(reached.len() == 1 || (400..500).contains(&status(&answer)) || answer.is_empty(), "{what}: {answer}");
    }
    eprintln!("clean enough to pass: {passed:?}");
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_request_is_sent_away_after_ten_seconds() {
    let (_daemon, address) = daemon().await;
    let slow = |request: &'static [u8]| async move {
        let start = Instant::now();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request).await.unwrap();
        let _ = timeout(LIMIT, client.read_to_end(&mut Vec::new())).await.unwrap();
        start.elapsed()
    };
    let quick = slow(b"nonsense\r\n\r\n");
    let waits = [slow(b""), slow(b"PRI * HTT"), slow(b"GET / HTTP/1.1\r\nHost: a\r\nX")];
    let (quick, waited) = tokio::join!(quick, join_all(waits));
    assert!(quick < Duration::from_secs(3), "{quick:?}");
    for waited in waited {
        assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test]
async fn more_clients_than_there_is_room_for_are_told_so() {
    let (daemon, address) = daemon().await;
    let mut held = Vec::new();
    for _ in 0..20 {
        // No more than the kernel keeps for a daemon that has not accepted them yet.
        held.extend(join_all((0..100).map(|_| TcpStream::connect(address))).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(held.iter().all(Result::is_ok));
    let (answer, _) = raw(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(status(&answer) == 503 && answer.ends_with("looked at now\n"), "{answer}");
    let len = field(&answer, "content-length").unwrap().parse::<usize>().unwrap();
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), len);
    drop(held);
    eventually("there is room again", async || status(&get(address, "web", 80, "/", "").await) == 404).await;
    assert_eq!(daemon.get("/version").await.0, 200);
}

#[tokio::test]
async fn a_daemon_that_cannot_listen_or_shall_not_says_so_where_a_url_would_be() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    let none = open(&daemon, "web", 80, false).await;
    assert_eq!((none.url, none.problem.unwrap().contains("--previews none")), (None, true));
    daemon.stop().await;
    daemon.config.previews = Some(taken.local_addr().unwrap());
    daemon.start_again().await;
    let (_, ports) = daemon.get("/vms/web/ports").await;
    let problem = ports[0]["problem"].as_str().unwrap();
    assert!(problem.contains(&format!("cannot listen on {}", taken.local_addr().unwrap())), "{problem}");
    assert_eq!(ports[0]["url"], Value::Null);
}

#[tokio::test]
async fn a_daemon_ends_although_somebody_looks() {
    let (mut daemon, address) = daemon().await;
    daemon.run("web").await;
    let (port, _) = echo().await;
    open(&daemon, "web", port, true).await;
    let mut client = upgrade(address, port).await;
    let idle = TcpStream::connect(address).await.unwrap();
    timeout(Duration::from_secs(9), daemon.stop()).await.unwrap();
    assert!(!matches!(timeout(LIMIT, client.read(&mut [0; 1])).await.unwrap(), Ok(1..)));
    drop(idle);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_port_is_a_number_and_its_request_says_what_can_be() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    for (path, body) in [
        ("/vms/web/ports/0", json!({})),
        ("/vms/web/ports/65536", json!({})),
        ("/vms/web/ports/http", json!({})),
        ("/vms/web/ports/80", json!({"pubic": true})),
    ] {
        assert_eq!(daemon.put(path, body).await.0, 400, "{path}");
    }
    assert_eq!(daemon.call(Method::PUT, "/vms/gone/ports/80", json!({})).await.0, 404);
    assert_eq!(daemon.delete("/vms/web/ports/80").await.0, 404);
}
