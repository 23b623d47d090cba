//! A daemon ends and another takes over.

mod support;

use http_body_util::Full;
use hyper::Request;
use pando_daemon::{Config, ServeError, serve_until};
use pando_wire::api::State;
use pando_wire::control::VERSION;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Daemon, ask, eventually, exists, read, signal, signal_kill};
use tokio::net::UnixStream;

#[tokio::test]
async fn vms_outlive_the_daemon_and_the_next_one_adopts_them() {
    let mut daemon = Daemon::start().await;
    let before = daemon.run("base").await;
    daemon.run("idle").await;
    daemon.post("/vms/idle/pause", Value::Null).await;
    daemon.fork("base", &["child"]).await;

    daemon.stop().await;
    assert!(exists(before.pid.unwrap()));
    assert!(!daemon.config.socket.exists());
    daemon.start_again().await;

    let after = daemon.vm("base").await;
    assert_eq!((after.state, after.pid, &after.owner), (State::Running, before.pid, &before.owner));
    assert_eq!(after.epoch, before.epoch + 1);
    assert_eq!(daemon.vm("idle").await.state, State::Paused);
    // It is looked after, too.
    let report = daemon.fork("base", &["late"]).await;
    assert_eq!(report.children[0].error, None);
    for name in ["base", "child"] {
        signal_kill(daemon.vm(name).await.pid.unwrap());
        eventually("it is stopped", async || daemon.vm(name).await.state == State::Stopped).await;
    }
}

#[tokio::test]
async fn a_vm_that_died_while_nobody_looked_is_stopped() {
    let mut daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    daemon.stop().await;
    signal_kill(vm.pid.unwrap());
    daemon.start_again().await;

    let vm = daemon.vm("base").await;
    assert_eq!((vm.state, vm.ending.as_deref(), vm.pid), (State::Stopped, Some("monitor died"), None));
    assert!(!daemon.sockets(&vm.id).exists());
}

#[tokio::test]
async fn what_belongs_to_no_vm_is_removed() {
    let mut daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    daemon.stop().await;
    let strays = [daemon.layer("stray"), daemon.sockets("stray"), daemon.path().join("state/vms/stray")];
    for stray in &strays {
        std::fs::create_dir(stray).unwrap();
    }
    let images = daemon.config.state_dir.join("images");
    let strays = [strays.to_vec(), vec![images.join(".import-1.partial"), images.join("unknown.ext4")]].concat();
    for stray in &strays[3..] {
        std::fs::write(stray, "half an image").unwrap();
    }
    daemon.start_again().await;
    assert!(strays.iter().all(|stray| !stray.exists()));
    assert!(images.join(format!("{}.ext4", vm.image)).exists());
    assert!(daemon.layer(&vm.id).exists() && daemon.sockets(&vm.id).exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let refusal = async |change: &dyn Fn(&mut Config)| {
        let mut config = daemon.config.clone();
        change(&mut config);
        let refused = tokio::time::timeout(Duration::from_secs(20), serve_until(config, std::future::pending()));
        refused.await.unwrap().unwrap_err().to_string()
    };
    let (pid, config) = (std::process::id(), &daemon.config);
    let state_dir = config.state_dir.display();
    assert_eq!(refusal(&|_| ()).await, format!("another daemon (pid {pid}) uses {state_dir}"));
    let (other_state, other_runtime) = (daemon.path().join("other state"), daemon.path().join("other run"));
    let runtime_dir = config.runtime_dir.display();
    assert_eq!(
        refusal(&|config| config.state_dir.clone_from(&other_state)).await,
        format!("another daemon (pid {pid}) uses {runtime_dir}")
    );
    let third = refusal(&|config: &mut Config| {
        config.state_dir.clone_from(&other_state);
        config.runtime_dir.clone_from(&other_runtime);
    })
    .await;
    assert_eq!(third, format!("another daemon listens on {}", config.socket.display()));

    // The second of them used to remove the sockets of the first one's VMs.
    let (status, report) = daemon.post("/vms/base/exec", json!({"argv": ["echo", "alive"]})).await;
    assert_eq!((status.as_u16(), &report["stdout"]), (200, &json!("alive\n")));
}

#[tokio::test]
async fn what_is_no_socket_is_not_removed_and_a_port_that_is_taken_leaves_none() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    std::fs::write(&daemon.config.socket, "precious").unwrap();
    let error = serve_until(daemon.config.clone(), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ServeError::Path { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&daemon.config.socket).unwrap(), "precious");

    std::fs::remove_file(&daemon.config.socket).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    daemon.config.tcp = Some((taken.local_addr().unwrap(), "token".into()));
    let error = serve_until(daemon.config.clone(), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ServeError::Tcp { .. }), "{error}");
    assert!(!daemon.config.socket.exists());
}

#[tokio::test]
async fn a_request_that_goes_on_when_the_daemon_is_told_to_end_is_answered_and_the_next_daemon_waits_for_it() {
    let mut daemon = Daemon::start().await;
    daemon.run("sluggish").await; // It powers off two seconds after it was asked to.
    let mut client = daemon.connect().await;
    let request = Request::post("/vms/sluggish/stop?timeout_ms=20000").header("host", "pando").body(Full::default());
    let asked = tokio::spawn(async move { read(ask(&mut client, request.unwrap()).await).await });
    tokio::time::sleep(Duration::from_millis(500)).await;

    let (begun, config) = (Instant::now(), daemon.config.clone());
    let next = async {
        eventually("the first one listens no more", async || UnixStream::connect(&config.socket).await.is_err()).await;
        serve_until(config.clone(), std::future::ready(())).await
    };
    let ((), next) = tokio::join!(daemon.stop(), next);

    let (status, vm) = asked.await.unwrap();
    assert_eq!((status.as_u16(), &vm["state"], &vm["ending"]), (200, &json!("stopped"), &json!("powered off")));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(next.is_ok(), "{next:?}");
}

#[tokio::test]
async fn a_monitor_that_is_busy_is_kept_and_taken_over_when_it_answers() {
    // It used to be killed when it did not answer within five seconds.
    let mut daemon = Daemon::start().await;
    let pid = daemon.run("base").await.pid.unwrap();
    let killed = daemon.run("hopeless").await.pid.unwrap();
    daemon.stop().await;
    for pid in [pid, killed] {
        signal(pid, Signal::STOP);
    }
    daemon.start_again().await;
    let vm = daemon.vm("base").await;
    assert_eq!((vm.state, vm.pid), (State::Running, Some(pid)));
    assert!(exists(pid));
    // One that never answers can be ended all the same.
    assert_eq!(daemon.post("/vms/hopeless/kill", Value::Null).await.1["state"], "stopped");
    assert!(!exists(killed));

    signal(pid, Signal::CONT);
    eventually("it is taken over", async || daemon.vm("base").await.usage.is_some()).await;
    signal_kill(pid);
    eventually("it is stopped", async || daemon.vm("base").await.state == State::Stopped).await;
}

#[tokio::test]
async fn a_monitor_that_has_lost_its_socket_is_ended_before_its_disk_is_used_again() {
    // Its VM used to be called stopped, and a start gave the same layer to a second writer.
    let mut daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    daemon.fork("base", &["child"]).await;
    let child = daemon.vm("child").await;
    daemon.stop().await;
    for vm in [&vm, &child] {
        std::fs::remove_dir_all(daemon.sockets(&vm.id)).unwrap();
    }
    daemon.start_again().await;

    for vm in [vm, child] {
        assert!(!exists(vm.pid.unwrap()), "{}", vm.name);
        assert_eq!(daemon.vm(&vm.name).await.state, State::Stopped);
        let (status, started) = daemon.post(&format!("/vms/{}/start", vm.name), Value::Null).await;
        assert_eq!((status.as_u16(), &started["state"]), (200, &json!("running")));
    }
}

#[tokio::test]
async fn a_disk_has_one_writer() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    let data = std::fs::File::open(daemon.layer(&vm.id).join("data")).unwrap();
    let lock = || rustix::fs::flock(&data, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK), "its monitor has it");
    daemon.post("/vms/base/kill", Value::Null).await;
    assert_eq!(lock(), Ok(()));
    let (status, body) = daemon.post("/vms/base/start", Value::Null).await;
    assert_eq!((status.as_u16(), &body["because"]), (500, &json!(["another process writes it"])), "now we have");
}

#[tokio::test]
async fn disks_are_kept_when_their_database_is_lost() {
    let mut daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    daemon.post("/vms/base/kill", Value::Null).await;
    daemon.stop().await;
    let database = daemon.config.state_dir.join("pando.db");
    let safe = daemon.path().join("safe.db");
    std::fs::rename(&database, &safe).unwrap();
    for _ in 0..2 {
        let ready = std::future::ready(()); // One that is not refused ends.
        let error = serve_until(daemon.config.clone(), ready).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("put their database back"), "{cause}");
        assert!(daemon.layer(&vm.id).join("data").exists());
    }
    std::fs::rename(&safe, &database).unwrap();
    daemon.start_again().await;
    assert_eq!(daemon.post("/vms/base/start", Value::Null).await.0, 200);
}

#[tokio::test]
async fn checkpoints_are_kept_when_their_database_is_lost() {
    let mut daemon = Daemon::start().await;
    daemon.run("base").await;
    let (_, made) = daemon.post("/vms/base/checkpoint", json!({"name": "warm"})).await;
    eventually("it is stored", async || daemon.get("/checkpoints/warm").await.1["state"] == "stored").await;
    signal_kill(made["seed"].as_u64().unwrap().try_into().unwrap());
    eventually("its seed is gone", async || daemon.get("/checkpoints/warm").await.1["seed"].is_null()).await;
    daemon.delete("/vms/base?force=true").await;
    daemon.stop().await;
    assert_eq!(std::fs::read_dir(daemon.config.state_dir.join("layers")).unwrap().count(), 0, "it is all there is");
    let database = daemon.config.state_dir.join("pando.db");
    let safe = daemon.path().join("safe.db");
    std::fs::rename(&database, &safe).unwrap();
    let stored = daemon.config.state_dir.join("store/checkpoints").join(made["id"].as_str().unwrap());
    for _ in 0..2 {
        let ready = std::future::ready(()); // One that is not refused ends.
        let refused = serve_until(daemon.config.clone(), ready).await;
        assert!(stored.exists());
        let cause = std::error::Error::source(&refused.unwrap_err()).unwrap().to_string();
        assert!(cause.contains("store/checkpoints") && cause.contains("put their database back"), "{cause}");
    }
    std::fs::rename(&safe, &database).unwrap();
    daemon.start_again().await;
    assert_eq!(
        daemon.post("/checkpoints/warm/run", json!({"children": [{}]})).await.1["children"][0]["error"],
        Value::Null
    );
}

#[tokio::test]
async fn a_vm_of_another_build_is_shown_and_left_alone_and_the_others_are_adopted() {
    // The daemon used to refuse to start.
    let mut daemon = Daemon::start().await;
    let (vm, other) = (daemon.run("newer").await, daemon.run("base").await);
    daemon.stop().await;
    daemon.start_again().await;

    let why = format!(
        "newer belongs to another build of pando: its monitor speaks version 99 of the control protocol, and this daemon \
         version {VERSION}"
    );
    let shown = daemon.vm("newer").await;
    assert_eq!((shown.state, shown.pid, shown.ending.as_ref()), (State::Running, vm.pid, Some(&why)));
    let (_, all) = daemon.get("/vms").await;
    let endings: Vec<_> = all.as_array().unwrap().iter().map(|vm| &vm["ending"]).collect();
    assert_eq!(endings, [&json!(why), &Value::Null]);
    assert_eq!(daemon.get("/vms/newer/logs").await.1, "booted newer\n");

    let refused = (409.try_into().unwrap(), json!({"error": why}));
    for (action, body) in [
        ("pause", Value::Null),
        ("resume", Value::Null),
        ("start", Value::Null),
        ("stop", Value::Null),
        ("kill", Value::Null),
        ("fork", json!({"children": [{}]})),
        ("exec", json!({"argv": ["echo"]})),
    ] {
        for name in ["newer", &vm.id] {
            assert_eq!(daemon.post(&format!("/vms/{name}/{action}"), body.clone()).await, refused, "{action}");
        }
    }
    assert_eq!(daemon.delete("/vms/newer").await, refused);
    assert_eq!(daemon.delete("/vms/newer?force=true").await, refused);
    assert!(exists(vm.pid.unwrap()) && daemon.layer(&vm.id).join("data").exists() && daemon.sockets(&vm.id).exists());

    assert_eq!(daemon.vm("base").await.pid, other.pid);
    let (status, report) = daemon.post("/vms/base/exec", json!({"argv": ["echo", "alive"]})).await;
    assert_eq!((status.as_u16(), &report["stdout"]), (200, &json!("alive\n")));

    signal_kill(vm.pid.unwrap());
    eventually("its end is seen", async || daemon.vm("newer").await.state == State::Stopped).await;
    let (status, started) = daemon.post("/vms/newer/start", Value::Null).await;
    assert_eq!((status.as_u16(), &started["state"], &started["ending"]), (200, &json!("running"), &Value::Null));
}
