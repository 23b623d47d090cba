//! The API as such.

mod support;

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use pando_daemon::openapi;
use pando_wire::{agent, frame};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use support::{Daemon, ask, eventually, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Every route, for a reader of this file and against the document.
const ROUTES: [&str; 42] = [
    "DELETE /checkpoints/{name}",
    "DELETE /images/{digest}",
    "DELETE /settings/{name}",
    "DELETE /vms/{name}",
    "DELETE /vms/{name}/ports/{port}",
    "GET /checkpoints",
    "GET /checkpoints/{name}",
    "GET /checkpoints/{name}/export",
    "GET /events",
    "GET /images",
    "GET /openapi.json",
    "GET /progress/{name}",
    "GET /settings",
    "GET /settings/{name}",
    "GET /version",
    "GET /vms",
    "GET /vms/{name}",
    "GET /vms/{name}/agent",
    "GET /vms/{name}/logs",
    "GET /vms/{name}/ports",
    "PATCH /vms/{name}/network",
    "POST /checkpoints",
    "POST /checkpoints/{name}/push",
    "POST /checkpoints/{name}/run",
    "POST /images",
    "POST /store/collect",
    "POST /store/pull",
    "POST /store/run",
    "POST /store/verify",
    "POST /vms",
    "POST /vms/{name}/checkpoint",
    "POST /vms/{name}/exec",
    "POST /vms/{name}/fork",
    "POST /vms/{name}/hibernate",
    "POST /vms/{name}/kill",
    "POST /vms/{name}/pause",
    "POST /vms/{name}/resume",
    "POST /vms/{name}/start",
    "POST /vms/{name}/stop",
    "POST /vms/{name}/wake",
    "PUT /settings/{name}",
    "PUT /vms/{name}/ports/{port}",
];

#[tokio::test]
async fn every_route_of_the_document_is_served_and_no_other() {
    let daemon = Daemon::start().await;
    let (_, document) = daemon.get("/openapi.json").await;
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            documented.insert(format!("{} {path}", method.to_uppercase()));
            assert!(operation["summary"].is_string(), "{method} {path} says what it is for");
            assert!(operation["responses"]["401"].is_object(), "{method} {path} says that TCP wants a token");
            let asks_fleet = !["/version", "/openapi.json"].contains(&path.as_str());
            assert_eq!(operation["responses"]["500"].is_object(), asks_fleet, "{method} {path} says that it may fail");
        }
    }
    assert_eq!(documented, ROUTES.map(str::to_owned).into());
    for route in ROUTES {
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace("{name}", "gone").replace("{digest}", "gone").replace("{port}", "80");
        let (status, body) = daemon.call(method.parse().unwrap(), &path, Value::Null).await;
        assert!(status != 405 && body["error"] != "there is no such route", "{route}: {status} {body}");
    }
    let (status, body) = daemon.get("/nowhere").await;
    assert_eq!((status.as_u16(), body), (404, json!({"error": "there is no such route"})));
    let (status, body) = daemon.delete("/version").await;
    assert_eq!((status.as_u16(), body), (405, json!({"error": "the route has no such method"})));
}

#[test]
fn the_document_is_the_one_that_was_reviewed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let document = openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("PANDO_BLESS").is_some() {
        std::fs::write(path, &document).unwrap();
    }
    let reviewed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(reviewed == document, "the API changed: review it, then run this test with PANDO_BLESS=1");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_alone() {
    let daemon = Daemon::start().await;
    let mode = std::fs::metadata(&daemon.config.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (_, version) = daemon.get("/version").await;
    assert_eq!(version["pid"], std::process::id());
}

#[tokio::test]
async fn on_tcp_only_the_token_opens() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    daemon.config.tcp = Some((port, "secret".into()));
    daemon.start_again().await;
    for (header, expected) in [(None, 401), (Some("Bearer wrong"), 401), (Some("Bearer secret"), 200)] {
        let stream = TcpStream::connect(port).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get("/version").header("host", "pando");
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let (status, body) = read(ask(&mut sender, request.body(Full::default()).unwrap()).await).await;
        assert_eq!(status, expected, "{body}");
        if expected == 401 {
            assert_eq!(body, json!({"error": "a valid bearer token is needed"}));
        }
    }
}

#[tokio::test]
async fn a_program_runs_with_its_input_and_its_output_comes_back() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let exec = async |body| daemon.post("/vms/base/exec", body).await;

    let (_, report) = exec(json!({"argv": ["echo", "a", "b"]})).await;
    assert_eq!(report, json!({"exit": 3, "stdout": "a b\n", "stderr": "", "truncated": false}));
    let (_, report) = exec(json!({"argv": ["cat"], "stdin": "input"})).await;
    assert_eq!(report["stderr"], "input");
    let (status, body) = exec(json!({"argv": ["missing"]})).await;
    assert_eq!((status.as_u16(), &body["because"]), (400, &json!(["no such program"])));
    let (status, body) = exec(json!({"argv": ["sleep"], "timeout_ms": 100})).await;
    assert_eq!((status.as_u16(), &body["error"]), (504, &json!("sleep in base did not end within 100 ms")));
    assert_eq!(exec(json!({"argv": []})).await.0, 400);
}

#[tokio::test]
async fn an_upgraded_connection_reaches_the_agent() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    assert_eq!(daemon.get("/vms/base/agent").await.0, 400);

    let request = Request::get("/vms/base/agent")
        .header("host", "pando")
        .header("connection", "Upgrade")
        .header("upgrade", "pando-agent")
        .body(Full::default())
        .unwrap();
    let response = ask(&mut daemon.connect().await, request).await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(&frame::encode(&agent::Request::Ping).unwrap()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let pong = frame::read(&mut &answer[..]).unwrap();
    assert_eq!(pong, Some(agent::Reply::Pong { version: agent::VERSION, generation: 0 }));
}

#[tokio::test]
async fn events_tell_a_life_in_order_and_go_on() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    let mut following = daemon.send(Method::GET, "/events?follow=true", Default::default()).await.into_body();
    daemon.fork("base", &["child"]).await;
    daemon.post("/vms/base/kill", Value::Null).await;
    daemon.delete("/vms/base").await;

    let mut text = String::new();
    while !text.contains("removed") {
        let frame = tokio::time::timeout(Duration::from_secs(5), following.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().filter(|event| event["vm"] == vm.id).map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["created", "running", "forked", "stopped", "removed"]);

    let last = events.last().unwrap()["seq"].as_i64().unwrap();
    let (_, rest) = daemon.get(&format!("/events?after={}", last - 1)).await;
    assert_eq!(rest["seq"], last);
    assert_eq!(daemon.get(&format!("/events?after={last}")).await.1, "");
    assert_eq!(daemon.get("/events?since=1").await.0, 400);
}

#[tokio::test]
async fn logs_that_are_followed_end_with_the_vm() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let following = daemon.send(Method::GET, "/vms/base/logs?follow=true", Default::default()).await;
    let reading = tokio::spawn(read(following));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!reading.is_finished());
    daemon.post("/vms/base/kill", Value::Null).await;
    let (_, text) = tokio::time::timeout(Duration::from_secs(5), reading).await.unwrap().unwrap();
    assert_eq!(text, "booted base\n");
}

#[tokio::test]
async fn a_daemon_ends_although_somebody_follows() {
    let mut daemon = Daemon::start().await;
    daemon.run("base").await;
    let events = daemon.send(Method::GET, "/events?follow=true", Default::default()).await;
    let logs = daemon.send(Method::GET, "/vms/base/logs?follow=true", Default::default()).await;
    tokio::time::timeout(Duration::from_secs(5), daemon.stop()).await.unwrap();
    drop((events, logs));
    eventually("its socket is gone", async || !daemon.config.socket.exists()).await;
}
