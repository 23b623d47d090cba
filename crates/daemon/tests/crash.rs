//! A daemon that is killed in the middle of something, and the next one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use hyper::Method;
use pando_daemon::serve;
use pando_wire::api::{Checkpoint, CheckpointState, State, Vm};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use support::{Daemon, config, eventually, signal_kill};

/// Where the daemon of [`a_daemon_to_be_killed`] has its things.
const DIR: &str = "PANDO_TEST_DIR";
/// How often a daemon is killed.
const KILLS: u32 = 40;

#[tokio::test]
async fn wherever_a_daemon_is_killed_the_next_one_has_only_vms_that_run_or_start() {
    let mut daemon = Daemon::elsewhere();
    let kernel = daemon.path().join("kernel");
    std::fs::write(&kernel, "no kernel").unwrap();
    let mut process = start(daemon.path());
    daemon.wait().await;
    let image = daemon.image().await;

    let work = async |parent: &str| {
        let run = json!({"name": parent, "image": image, "kernel": kernel});
        daemon.attempt(Method::POST, "/vms", run).await;
        let children: Vec<_> = (0..4).map(|child| json!({"name": format!("{parent}.{child}")})).collect();
        daemon.attempt(Method::POST, &format!("/vms/{parent}/fork"), json!({"children": children})).await;
        daemon.attempt(Method::DELETE, &format!("/vms/{parent}?force=true"), Value::Null).await;
        daemon.attempt(Method::DELETE, &format!("/vms/{parent}.1?force=true"), Value::Null).await;
    };
    work("warm").await;
    let begun = Instant::now();
    work("whole").await;
    let whole = begun.elapsed();
    for round in 0..KILLS {
        let parent = format!("p{round}");
        // Spread over all of it, in an order that does not matter.
        let moment = whole * (round * 17 % KILLS) / KILLS;
        let _ = tokio::time::timeout(moment, work(&parent)).await;
        signal_kill(process.id());
        process.wait().unwrap();
        process = start(daemon.path());
        daemon.wait().await;
    }
    signal_kill(process.id());
    process.wait().unwrap();
    daemon.start_again().await;

    let all = async || serde_json::from_value::<Vec<Vm>>(daemon.get("/vms").await.1).unwrap();
    eventually("what was starting has started", async || all().await.iter().all(|vm| vm.state != State::Starting))
        .await;
    let vms = all().await;
    assert!(!vms.is_empty());
    println!("{} VMs, {} stopped", vms.len(), vms.iter().filter(|vm| vm.state == State::Stopped).count());
    for vm in &vms {
        if vm.state == State::Stopped {
            let (status, answer) = daemon.post(&format!("/vms/{}/start", vm.id), Value::Null).await;
            assert_eq!(status, 200, "{}: {answer}", vm.name);
        }
        let (status, answer) = daemon.post(&format!("/vms/{}/exec", vm.id), json!({"argv": ["echo"]})).await;
        assert_eq!(status, 200, "{}: {answer}", vm.name);
    }
    let of_vms = vms.len();
    eventually("nobody else lives", async || living(daemon.path()) == of_vms).await;
    for vm in vms {
        assert_eq!(daemon.delete(&format!("/vms/{}?force=true", vm.id)).await.0, 204);
    }
    assert_eq!(living(daemon.path()), 0);
    for dir in ["state/vms", "state/layers", "run/vms"] {
        assert_eq!(std::fs::read_dir(daemon.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[tokio::test]
async fn what_a_killed_daemon_was_starting_is_finished_by_the_next() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    let kernel = daemon.path().join("kernel");
    std::fs::write(&kernel, "no kernel").unwrap();
    let run = json!({"name": "slow", "image": daemon.image().await, "kernel": kernel});
    let asked = daemon.attempt(Method::POST, "/vms", run); // Its agent takes half a second.
    let begun = eventually("its guest runs", async || {
        daemon.get("/vms/slow/logs").await.1.as_str().is_some_and(|log| log.contains("booted"))
    });
    tokio::select! { _ = asked => panic!("it was not slow"), () = begun => () }
    signal_kill(process.id());
    process.wait().unwrap();

    daemon.start_again().await;

    eventually("it runs", async || daemon.vm("slow").await.state == State::Running).await;
    assert_eq!(daemon.post("/vms/slow/exec", json!({"argv": ["echo"]})).await.0, 200);
}

/// Its monitor stands still, and it is not written down that it runs: what was stored is still what it is.
#[tokio::test]
async fn a_vm_that_a_killed_daemon_was_waking_and_had_not_let_run_sleeps_on() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    daemon.run("drowsy").await;
    assert_eq!(daemon.post("/vms/drowsy/hibernate", Value::Null).await.0, 200);
    let log = async || daemon.get("/vms/drowsy/logs").await.1.as_str().unwrap_or_default().to_owned();
    let asked = daemon.attempt(Method::POST, "/vms/drowsy/wake", Value::Null);
    let stands_still = eventually("its monitor has it", async || log().await.contains("slept as"));
    tokio::select! { _ = asked => panic!("it was not drowsy"), () = stands_still => () }
    signal_kill(process.id());
    process.wait().unwrap();

    daemon.start_again().await;

    eventually("it sleeps", async || daemon.vm("drowsy").await.state == State::Hibernated).await;
    assert_eq!(living(daemon.path()), 0);
    assert_eq!(daemon.post("/vms/drowsy/wake", Value::Null).await.0, 200);
    let log = daemon.get("/vms/drowsy/logs").await.1;
    assert_eq!(log.as_str().unwrap().matches("slept as").count(), 2, "{log}");
}

/// It is written down that it runs, and it does not yet.
#[tokio::test]
async fn a_vm_that_a_killed_daemon_had_woken_is_let_run_by_the_next() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    let vm = daemon.run("reluctant").await;
    let journal = daemon.path().join("state/layers").join(vm.id).join("map");
    let is_flushed = || std::fs::read_to_string(&journal).unwrap().contains("flushed at");
    assert_eq!(daemon.post("/vms/reluctant/hibernate", Value::Null).await.0, 200);
    assert!(is_flushed());
    let asked = daemon.attempt(Method::POST, "/vms/reluctant/wake", Value::Null);
    let is_told = eventually("its monitor is told to go on", async || !is_flushed());
    tokio::select! { _ = asked => panic!("it was not reluctant"), () = is_told => () }
    signal_kill(process.id());
    process.wait().unwrap();

    daemon.start_again().await;

    eventually("it runs", async || daemon.vm("reluctant").await.state == State::Running).await;
    let (_, ran) = daemon.post("/vms/reluctant/exec", json!({"argv": ["phase"]})).await;
    assert_eq!(ran["stdout"], "Running\n");
}

#[tokio::test]
async fn a_twin_from_the_store_that_a_killed_daemon_was_starting_is_told_who_it_is_by_the_next() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    daemon.run("web").await;
    let (_, made) = daemon.post("/vms/web/checkpoint", json!({"name": "warm"})).await;
    eventually("it is stored", async || daemon.get("/checkpoints/warm").await.1["state"] == "stored").await;
    signal_kill(made["seed"].as_u64().unwrap().try_into().unwrap());
    eventually("its seed is gone", async || daemon.get("/checkpoints/warm").await.1["seed"].is_null()).await;
    let body = json!({"children": [{"name": "slow"}]}); // Its agent takes half a second.
    let asked = daemon.attempt(Method::POST, "/checkpoints/warm/run", body);
    let begun = eventually("its guest runs", async || {
        daemon.get("/vms/slow/logs").await.1.as_str().is_some_and(|log| log.contains("woken"))
    });
    tokio::select! { _ = asked => panic!("it was not slow"), () = begun => () }
    signal_kill(process.id());
    process.wait().unwrap();

    daemon.start_again().await;

    eventually("it runs", async || daemon.vm("slow").await.state == State::Running).await;
    let (_, report) = daemon.post("/vms/slow/exec", json!({"argv": ["hostname"]})).await;
    assert_eq!(report["stdout"], "slow");
}

#[tokio::test]
async fn wherever_a_daemon_is_killed_checkpoints_are_in_memory_or_stored_or_gone() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    daemon.run("web").await;
    let work = async |name: &str| {
        daemon.attempt(Method::POST, "/vms/web/checkpoint", json!({"name": name})).await;
        let children = json!({"children": [{"name": format!("{name}.a")}, {"name": format!("{name}.b")}]});
        daemon.attempt(Method::POST, &format!("/checkpoints/{name}/run"), children).await;
        daemon.attempt(Method::DELETE, &format!("/checkpoints/{name}"), Value::Null).await;
        daemon.attempt(Method::DELETE, &format!("/vms/{name}.a?force=true"), Value::Null).await;
    };
    work("warm").await;
    let begun = Instant::now();
    work("whole").await;
    let whole = begun.elapsed();
    for round in 0..KILLS {
        let moment = whole * (round * 17 % KILLS) / KILLS;
        let _ = tokio::time::timeout(moment, work(&format!("c{round}"))).await;
        signal_kill(process.id());
        process.wait().unwrap();
        process = start(daemon.path());
        daemon.wait().await;
    }
    signal_kill(process.id());
    process.wait().unwrap();
    daemon.start_again().await;

    let all = async || serde_json::from_value::<Vec<Checkpoint>>(daemon.get("/checkpoints").await.1).unwrap();
    let is_stored = |checkpoint: &Checkpoint| checkpoint.state == CheckpointState::Stored;
    eventually("what is in memory is stored", async || all().await.iter().all(is_stored)).await;
    let checkpoints = all().await;
    assert!(!checkpoints.is_empty());
    println!("{} checkpoints", checkpoints.len());
    for checkpoint in &checkpoints {
        let body = json!({"children": [{"name": format!("last.{}", checkpoint.name)}]});
        let (_, report) = daemon.post(&format!("/checkpoints/{}/run", checkpoint.id), body).await;
        assert_eq!(report["children"][0]["error"], Value::Null, "{report}");
        assert_eq!(daemon.delete(&format!("/checkpoints/{}", checkpoint.id)).await.0, 204);
    }
    for vm in serde_json::from_value::<Vec<Vm>>(daemon.get("/vms").await.1).unwrap() {
        assert_eq!(daemon.delete(&format!("/vms/{}?force=true", vm.id)).await.0, 204);
    }
    eventually("nobody lives", async || living(daemon.path()) == 0).await;
    for dir in ["state/vms", "state/layers", "run/vms", "state/store/checkpoints"] {
        assert_eq!(std::fs::read_dir(daemon.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[tokio::test]
async fn wherever_a_daemon_is_killed_a_vm_runs_or_sleeps_and_nothing_of_it_is_left_over() {
    let mut daemon = Daemon::elsewhere();
    let mut process = start(daemon.path());
    daemon.wait().await;
    let web = daemon.run("web").await;
    let work = async || {
        daemon.attempt(Method::POST, "/vms/web/hibernate", Value::Null).await;
        daemon.attempt(Method::POST, "/vms/web/wake", Value::Null).await;
    };
    work().await;
    let begun = Instant::now();
    work().await;
    let whole = begun.elapsed();
    let mut asleep = 0;
    for round in 0..KILLS {
        let moment = whole * (round * 17 % KILLS) / KILLS;
        let _ = tokio::time::timeout(moment, work()).await;
        signal_kill(process.id());
        process.wait().unwrap();
        process = start(daemon.path());
        daemon.wait().await;
        let is_settled = async || daemon.vm("web").await.state != State::Starting;
        eventually("what was waking runs or sleeps", is_settled).await;
        let state = daemon.vm("web").await.state;
        asleep += u32::from(state == State::Hibernated);
        // One that was woken has a page server beside it.
        let lives = if state == State::Running { 1..=2 } else { 0..=0 };
        eventually("it lives once or not at all", async || lives.contains(&living(daemon.path()))).await;
        assert!(matches!(state, State::Running | State::Hibernated), "{state:?}");
        let (status, ran) = daemon.post("/vms/web/exec", json!({"argv": ["phase"]})).await;
        assert_eq!((status.as_u16(), &ran["stdout"]), (200, &json!("Running\n")), "round {round}, {state:?}: {ran}");
    }
    println!("{asleep} of {KILLS} times asleep");
    assert_eq!(daemon.vm("web").await.id, web.id);
    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);
    signal_kill(process.id());
    process.wait().unwrap();
    daemon.start_again().await;
    eventually("nobody lives", async || living(daemon.path()) == 0).await;
    for dir in ["state/vms", "state/layers", "run/vms", "state/store/checkpoints"] {
        assert_eq!(std::fs::read_dir(daemon.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

/// Its monitor that is: what is stored of it and its disk are of one instant, or it starts from its disk. The monitor of
/// these tests notices where they are not.
#[tokio::test]
async fn wherever_monitors_are_killed_a_vm_sleeps_or_is_stopped_and_what_slept_is_woken_once() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    let order = async |what: &str| {
        daemon.attempt(Method::POST, &format!("/vms/web/{what}"), Value::Null).await;
    };
    let work = async || {
        order("hibernate").await;
        order("wake").await;
    };
    work().await;
    let begun = Instant::now();
    work().await;
    let whole = begun.elapsed();
    let mut found = [0; 3];
    for round in 0..KILLS {
        let moment = whole * (round * 17 % KILLS) / KILLS;
        let kill = async {
            tokio::time::sleep(moment).await;
            processes(daemon.path()).into_iter().for_each(kill_if_there);
        };
        tokio::join!(work(), kill);
        // Its end may not have been seen yet.
        let goes_on = async || {
            let state = daemon.vm("web").await.state;
            if state == State::Stopped {
                order("start").await;
            }
            let (_, ran) = daemon.post("/vms/web/exec", json!({"argv": ["phase"]})).await;
            let does = ran["stdout"] == "Running\n";
            match state {
                State::Hibernated => found[1] += u32::from(does),
                State::Stopped => found[2] += u32::from(does),
                _ => found[0] += u32::from(does),
            }
            does
        };
        eventually("it runs, wakes, or starts from its disk", goes_on).await;
    }
    println!("{found:?} of {KILLS} times it ran, slept, was stopped");
    assert!(found[2] > 0, "kills came in the middle of it: {found:?}");
    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);
    eventually("nobody lives", async || living(daemon.path()) == 0).await;
}

/// No promise of its own: the process that the other tests kill.
#[tokio::test]
#[ignore = "runs until it is killed"]
async fn a_daemon_to_be_killed() {
    let dir = std::env::var_os(DIR).unwrap();
    serve(config(Path::new(&dir))).await.unwrap();
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["a_daemon_to_be_killed", "--exact", "--ignored"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// How many monitors there are that were started for a daemon in `dir`, without those that are dead.
fn living(dir: &Path) -> usize {
    processes(dir).len()
}

/// It may have ended by itself.
fn kill_if_there(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Their processes: each has its log there, or its ancestor's.
fn processes(dir: &Path) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let logs = all.filter_map(|process| {
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        let log = (name == "fake-monitor\n").then(|| std::fs::read_link(process.path().join("fd/2")).ok())??;
        log.starts_with(dir).then(|| process.file_name().to_str()?.parse().ok())?
    });
    logs.collect()
}
