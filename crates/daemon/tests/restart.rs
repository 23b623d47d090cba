//! A daemon ends and another takes over.

mod support;

use pando_daemon::{ServeError, serve_until};
use pando_wire::api::State;
use serde_json::{Value, json};
use support::{Daemon, eventually, exists, signal_kill};

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
    daemon.start_again().await;
    assert!(strays.iter().all(|stray| !stray.exists()));
    assert!(daemon.layer(&vm.id).exists() && daemon.sockets(&vm.id).exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let daemon = Daemon::start().await;
    let second = serve_until(daemon.config.clone(), std::future::pending()).await.unwrap_err();
    let state_dir = daemon.config.state_dir.display();
    assert_eq!(second.to_string(), format!("another daemon (pid {}) uses {state_dir}", std::process::id()));

    let mut elsewhere = daemon.config.clone();
    elsewhere.state_dir = daemon.path().join("other");
    let third = serve_until(elsewhere, std::future::pending()).await.unwrap_err();
    assert!(matches!(third, ServeError::SocketTaken { .. }), "{third}");
    assert_eq!(daemon.get("/vms").await.1, json!([]));
}
