//! VMs that nobody uses hibernate by themselves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use futures_util::future::join_all;
use hyper::Method;
use pando_wire::api::{State, Vm};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Daemon, eventually};
use tokio::time::sleep;

async fn set(daemon: &Daemon, timeout: &str) {
    let (status, setting) = daemon.put("/settings/idle-timeout", json!({"value": timeout})).await;
    assert_eq!(status, 200, "{setting}");
}

async fn exec(daemon: &Daemon, vm: &str, argv: &[&str]) -> Value {
    daemon.post(&format!("/vms/{vm}/exec"), json!({"argv": argv})).await.1
}

async fn run_with_timeout(daemon: &Daemon, name: &str, timeout_ms: u64) -> (u16, Value) {
    let kernel = daemon.path().join("kernel");
    std::fs::write(&kernel, "no kernel").unwrap();
    let image = daemon.image().await;
    let request = json!({"name": name, "image": image, "kernel": kernel, "idle_timeout_ms": timeout_ms});
    let (status, body) = daemon.post("/vms", request).await;
    (status.as_u16(), body)
}

async fn falls_asleep(daemon: &Daemon, vm: &str) {
    let start = Instant::now();
    // To look at a VM is no use of it.
    while daemon.vm(vm).await.state != State::Hibernated {
        assert!(start.elapsed() < Duration::from_secs(30), "{vm} falls asleep");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at a VM all the time.
async fn stays(daemon: &Daemon, vm: &str, state: State, ms: u64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(ms) {
        assert_eq!(daemon.vm(vm).await.state, state, "after {:?}", start.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
}

/// How each time came about that it fell asleep.
async fn sleeps(daemon: &Daemon, vm: &Vm) -> Vec<String> {
    let (_, lines) = daemon.get("/events").await;
    let events = lines.as_str().unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let slept = events.filter(|event| event["kind"] == "hibernated" && event["vm"] == vm.id);
    slept.map(|event| event["detail"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_vm_that_nobody_uses_hibernates_and_wakes_when_it_is_needed_and_does_so_again() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("web").await;
    stays(&daemon, "web", State::Running, 1500).await;

    set(&daemon, "1s").await;
    falls_asleep(&daemon, "web").await;

    assert_eq!(exec(&daemon, "web", &["echo", "a"]).await["stdout"], "a\n");
    stays(&daemon, "web", State::Running, 500).await;
    falls_asleep(&daemon, "web").await;
    daemon.post("/vms/web/wake", Value::Null).await;
    daemon.post("/vms/web/hibernate", Value::Null).await;
    assert_eq!(sleeps(&daemon, &vm).await, ["idle", "idle", ""]);
}

#[tokio::test]
async fn a_vm_is_awake_as_long_as_a_program_runs_in_it() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    set(&daemon, "1s").await;

    let run = daemon.post("/vms/web/exec", json!({"argv": ["sleep"], "timeout_ms": 3000}));
    let (ran, ()) = tokio::join!(run, stays(&daemon, "web", State::Running, 3000));

    assert_eq!(ran.0, 504);
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_vm_is_awake_as_long_as_a_client_is_connected_to_its_agent() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    set(&daemon, "1s").await;

    let request = hyper::Request::builder().method(Method::GET).uri("/vms/web/agent").header("host", "pando");
    let request = request.header("connection", "Upgrade").header("upgrade", "pando-agent");
    let response = support::ask(&mut daemon.connect().await, request.body(Default::default()).unwrap()).await;
    let shell = hyper::upgrade::on(response).await.unwrap();
    // For longer than it would be taken for somebody who is entering.
    stays(&daemon, "web", State::Running, 7000).await;

    drop(shell);
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_vm_is_awake_as_long_as_it_computes() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    set(&daemon, "1s").await;

    exec(&daemon, "web", &["compute"]).await;

    stays(&daemon, "web", State::Running, 3000).await;
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_vm_is_awake_as_long_as_it_is_asked_for() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    set(&daemon, "1s").await;
    for n in 0..6 {
        sleep(Duration::from_millis(400)).await;
        // Refused, and wanted all the same.
        let (status, error) = daemon.post("/vms/web/resume", Value::Null).await;
        assert_eq!((status.as_u16(), error["error"].as_str()), (409, Some("cannot resume web: it is running")), "{n}");
    }
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn the_clock_begins_anew_with_each_daemon() {
    let mut daemon = Daemon::start().await;
    set(&daemon, "2s").await;
    daemon.run("web").await;
    sleep(Duration::from_millis(1500)).await;
    daemon.stop().await;
    sleep(Duration::from_secs(1)).await;

    daemon.start_again().await;

    stays(&daemon, "web", State::Running, 1500).await;
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_timeout_that_changes_holds_for_what_was_counted_already() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    set(&daemon, "1h").await;
    sleep(Duration::from_secs(2)).await;
    set(&daemon, "3s").await;
    set(&daemon, "off").await;
    stays(&daemon, "web", State::Running, 1000).await;
    set(&daemon, "1h").await;
    sleep(Duration::from_secs(5)).await;

    let start = Instant::now();
    set(&daemon, "5s").await;
    falls_asleep(&daemon, "web").await;
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_vm_can_have_a_timeout_of_its_own_and_its_forks_have_the_same() {
    let daemon = Daemon::start().await;
    let (status, error) = run_with_timeout(&daemon, "never", 999).await;
    let sentence = "an idle timeout of 999ms is not possible: 1s to 8760h are";
    assert_eq!((status, error["error"].as_str()), (400, Some(sentence)));
    assert_eq!(run_with_timeout(&daemon, "lazy", 1000).await.1["idle_timeout_ms"], 1000);
    assert_eq!(run_with_timeout(&daemon, "awake", 0).await.1["idle_timeout_ms"], 0);
    let (plain, _) = tokio::join!(daemon.run("plain"), daemon.fork("lazy", &["child"]));
    assert_eq!(plain.idle_timeout_ms, None);

    falls_asleep(&daemon, "lazy").await;
    falls_asleep(&daemon, "child").await;
    stays(&daemon, "plain", State::Running, 100).await;
    set(&daemon, "1s").await;
    falls_asleep(&daemon, "plain").await;
    stays(&daemon, "awake", State::Running, 1500).await;
}

#[tokio::test]
async fn a_vm_that_is_paused_stays_so_and_its_clock_begins_anew_when_it_goes_on() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.post("/vms/web/pause", Value::Null).await;
    set(&daemon, "2s").await;
    // An attempt would take 2 s to find out that the agent does not answer.
    stays(&daemon, "web", State::Paused, 5000).await;
    assert_eq!(daemon.vm("web").await.sleepless, None, "it was not even tried");
    daemon.post("/vms/web/resume", Value::Null).await;
    stays(&daemon, "web", State::Running, 1200).await;
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_vm_whose_memory_still_arrives_is_awake() {
    let daemon = Daemon::start().await;
    daemon.run("arriving").await;
    daemon.post("/vms/arriving/hibernate", Value::Null).await;
    assert_eq!(daemon.post("/vms/arriving/wake", Value::Null).await.0, 200);
    set(&daemon, "1s").await;
    stays(&daemon, "arriving", State::Running, 2500).await;
}

#[tokio::test]
async fn a_vm_that_cannot_sleep_runs_on_says_why_and_is_left_alone() {
    let daemon = Daemon::start().await;
    daemon.run("unsavable").await;
    set(&daemon, "1s").await;
    eventually("it is tried", async || daemon.vm("unsavable").await.sleepless.is_some()).await;
    assert_eq!(
        daemon.vm("unsavable").await.sleepless.unwrap(),
        "cannot store unsavable: cannot store it: the disk is full"
    );
    stays(&daemon, "unsavable", State::Running, 3000).await;
    assert_eq!(exec(&daemon, "unsavable", &["pauses"]).await["stdout"], "1\n");
    assert_eq!(exec(&daemon, "unsavable", &["phase"]).await["stdout"], "Running\n");
}

#[tokio::test]
async fn a_program_that_comes_while_a_vm_falls_asleep_waits_and_wakes_it() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("late-to-store").await;
    let (asleep, ran) = tokio::join!(daemon.post("/vms/late-to-store/hibernate", Value::Null), async {
        sleep(Duration::from_millis(500)).await;
        exec(&daemon, "late-to-store", &["echo", "a"]).await
    });
    assert_eq!((asleep.0.as_u16(), &ran["stdout"]), (200, &json!("a\n")), "{ran}");
    assert_eq!(daemon.vm("late-to-store").await.state, State::Running);
    assert_eq!(sleeps(&daemon, &vm).await, [""]);
}

/// Two fall asleep at a time, and take their time: the third has been decided on, and waits.
#[tokio::test]
async fn a_program_that_begins_between_the_decision_and_the_sleep_is_seen() {
    let daemon = Daemon::start().await;
    for name in ["late-to-store1", "late-to-store2", "web"] {
        daemon.run(name).await;
    }
    set(&daemon, "1s").await;
    sleep(Duration::from_millis(1700)).await;
    let (status, ran) = daemon.post("/vms/web/exec", json!({"argv": ["sleep"], "timeout_ms": 4000})).await;
    assert_eq!(status, 504, "it ran until it was killed: {ran}");
    assert_eq!(daemon.vm("late-to-store1").await.state, State::Hibernated);
    falls_asleep(&daemon, "web").await;
}

#[tokio::test]
async fn a_program_that_comes_just_when_it_is_time_to_sleep_runs() {
    let daemon = Daemon::start().await;
    set(&daemon, "1s").await;
    let names: Vec<_> = (0..8).map(|n| format!("late-to-store{n}")).collect();
    for name in &names {
        daemon.run(name).await;
    }
    let use_each = names.iter().zip(0..).map(async |(name, n)| {
        for round in 0..3 {
            sleep(Duration::from_millis(1000 + n * 40)).await;
            let ran = exec(&daemon, name, &["echo", "a"]).await;
            assert_eq!(ran["stdout"], "a\n", "{name} in round {round}: {ran}");
        }
    });
    join_all(use_each).await;
}
