//! A VM from its creation to its removal.

mod support;

use http_body_util::Full;
use hyper::Request;
use pando_wire::api::State;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Daemon, eventually, exists, signal_kill};

#[tokio::test]
async fn a_vm_runs_and_is_found_by_name_and_by_id() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("base").await;

    assert_eq!((vm.state, vm.name.as_str(), vm.memory_bytes), (State::Running, "base", 512 << 20));
    assert!(vm.usage.unwrap().rss_bytes > 0);
    assert!(exists(vm.pid.unwrap()));
    assert_eq!(daemon.vm(&vm.id).await.name, "base");
    let (_, all) = daemon.get("/vms").await;
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(daemon.get("/vms/gone").await, (404.try_into().unwrap(), json!({"error": "no VM is called gone"})));
}

#[tokio::test]
async fn a_vm_that_nobody_named_gets_a_name() {
    let daemon = Daemon::start().await;
    let (status, vm) =
        daemon.post("/vms", json!({"image": daemon.image().await, "kernel": daemon.config.monitor})).await;
    assert_eq!(status, 200, "{vm}");
    assert!(!vm["name"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn a_name_that_is_taken_is_a_conflict() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let (status, body) = daemon.try_run("base").await;
    assert_eq!((status.as_u16(), body), (409, json!({"error": "there is a VM called base already"})));
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let daemon = Daemon::start().await;
    let image = daemon.image().await;
    for wrong in [
        json!({"image": image, "name": "No"}),
        json!({"image": image, "cpus": 0}),
        json!({"image": image, "memory_bytes": 1}),
        json!({"image": image, "disk_bytes": 1}),
        json!({"image": image, "unknown": 1}),
        json!([]),
    ] {
        assert_eq!(daemon.post("/vms", wrong.clone()).await.0, 400, "{wrong}");
    }
    let (status, body) = daemon.post("/vms", json!({"image": "nothing"})).await;
    assert_eq!((status.as_u16(), body), (404, json!({"error": "there is no image nothing"})));
    assert_eq!(daemon.get("/vms").await.1, json!([]));
}

#[tokio::test]
async fn without_kvm_the_answer_says_so() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    daemon.config.kvm = "/nonexistent/kvm".into();
    daemon.start_again().await;
    let (status, body) = daemon.try_run("base").await;
    assert_eq!((status.as_u16(), &body["error"]), (503, &json!("cannot open /nonexistent/kvm")));
}

#[tokio::test]
async fn without_memory_the_answer_says_so_and_nothing_is_made() {
    let mut daemon = Daemon::start().await;
    daemon.run("base").await;
    daemon.run("idle").await;
    daemon.post("/vms/idle/kill", Value::Null).await;
    daemon.stop().await;
    daemon.config.meminfo = daemon.path().join("meminfo");
    daemon.start_again().await;
    let available = |mib: u64| {
        std::fs::write(&daemon.config.meminfo, format!("MemAvailable:   {} kB\n", mib << 10)).unwrap();
    };
    let no_room = |what: &str, needed, available| {
        let error = format!("no room for {what}: {needed} MiB may be needed, and {available} MiB are available");
        (503.try_into().unwrap(), json!({"error": error}))
    };

    available(383);
    assert_eq!(daemon.try_run("late").await, no_room("a VM called late", 384, 383));
    assert_eq!(daemon.post("/vms/idle/start", Value::Null).await, no_room("idle", 384, 383));
    let ten = json!({"children": vec![json!({}); 10]});
    assert_eq!(daemon.post("/vms/base/fork", ten.clone()).await, no_room("10 children of base", 416, 383));
    assert_eq!(daemon.get("/vms").await.1.as_array().unwrap().len(), 2);

    available(416);
    assert_eq!(daemon.post("/vms/base/fork", ten).await.0, 200);
    assert_eq!(daemon.post("/vms/idle/start", Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_vm_that_does_not_boot_shows_its_console_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    // It ends as soon as it has begun, often before it can say that it has.
    for _ in 0..20 {
        let (status, body) = daemon.try_run("no-boot").await;
        assert_eq!(
            (status.as_u16(), body),
            (
                500,
                json!({
                    "error": "cannot boot no-boot: it crashed: triple fault",
                    "because": ["Kernel panic - not syncing: no root"]
                })
            )
        );
    }
    let (status, body) = daemon.try_run("refused").await;
    assert_eq!(
        (status.as_u16(), body),
        (500, json!({"error": "cannot boot refused", "because": ["the machine is broken", "no such device"]}))
    );
    let (status, body) = daemon.try_run("dead").await;
    assert_eq!((status.as_u16(), &body["error"]), (500, &json!("cannot boot dead: it ended: its monitor died")));
    assert_eq!(daemon.monitors(), 0, "not even a zombie is left");

    assert_eq!(daemon.get("/vms").await.1, json!([]));
    for dir in ["state/vms", "state/layers", "run/vms"] {
        assert_eq!(std::fs::read_dir(daemon.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}

#[tokio::test]
async fn a_vm_pauses_and_resumes() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    assert_eq!(daemon.post("/vms/base/resume", Value::Null).await.0, 409);
    assert_eq!(daemon.post("/vms/base/pause", Value::Null).await.1["state"], "paused");
    assert_eq!(daemon.post("/vms/base/pause", Value::Null).await.0, 409);
    assert_eq!(daemon.post("/vms/base/exec", json!({"argv": ["echo"]})).await.0, 409);
    assert_eq!(daemon.post("/vms/base/resume", Value::Null).await.1["state"], "running");
}

#[tokio::test]
async fn a_guest_is_asked_to_stop_and_made_to_when_it_does_not() {
    let daemon = Daemon::start().await;
    for (name, ending) in [("polite", "powered off"), ("stubborn", "killed")] {
        daemon.run(name).await;
        let (status, vm) = daemon.post(&format!("/vms/{name}/stop?timeout_ms=500"), Value::Null).await;
        assert_eq!((status.as_u16(), &vm["state"], &vm["ending"]), (200, &json!("stopped"), &json!(ending)));
        assert_eq!(daemon.post(&format!("/vms/{name}/stop"), Value::Null).await.0, 409);
    }
    daemon.run("paused").await;
    daemon.post("/vms/paused/pause", Value::Null).await;
    let (_, vm) = daemon.post("/vms/paused/stop", Value::Null).await;
    assert_eq!(vm["ending"], "powered off");
}

#[tokio::test]
async fn a_stopped_vm_starts_again_from_its_disk() {
    let daemon = Daemon::start().await;
    let first = daemon.run("base").await;
    assert_eq!(daemon.post("/vms/base/start", Value::Null).await.0, 409);
    daemon.post("/vms/base/stop", Value::Null).await;

    // The monitor checks that its layer has what it wrote to it before.
    let (status, vm) = daemon.post("/vms/base/start", Value::Null).await;

    assert_eq!((status.as_u16(), &vm["state"], &vm["id"]), (200, &json!("running"), &json!(first.id)));
    assert_eq!(daemon.get("/vms/base/logs").await.1, "booted base\nbooted base\n");
}

#[tokio::test]
async fn a_child_starts_again_from_its_parents_layers_too() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    daemon.fork("base", &["child"]).await;
    daemon.delete("/vms/base?force=true").await;
    daemon.post("/vms/child/kill", Value::Null).await;
    let (status, vm) = daemon.post("/vms/child/start", Value::Null).await;
    assert_eq!((status.as_u16(), &vm["state"]), (200, &json!("running")), "{vm}");
}

#[tokio::test]
async fn a_monitor_that_dies_is_noticed_and_everything_of_it_is_gone_within_a_second() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    let pid = vm.pid.unwrap();
    assert!(daemon.sockets(&vm.id).exists());

    signal_kill(pid);
    let killed = Instant::now();
    eventually("it is stopped", async || daemon.vm("base").await.state == State::Stopped).await;

    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    assert_eq!(daemon.vm("base").await.ending.as_deref(), Some("monitor died"));
    assert!(!daemon.sockets(&vm.id).exists());
    assert!(!exists(pid), "a zombie is left");
    assert!(daemon.layer(&vm.id).join("data").exists(), "its disk is kept");
}

#[tokio::test]
async fn a_running_vm_is_removed_by_force_alone() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("base").await;
    let (status, body) = daemon.delete("/vms/base").await;
    assert_eq!((status.as_u16(), body), (409, json!({"error": "cannot remove base: it is running"})));
    assert_eq!(daemon.delete("/vms/base?force=true").await.0, 204);
    assert_eq!(daemon.get("/vms/base").await.0, 404);
    assert!(!exists(vm.pid.unwrap()));
    assert!(!daemon.layer(&vm.id).exists());
}

#[tokio::test]
async fn an_image_is_kept_while_a_vm_needs_it() {
    let daemon = Daemon::start().await;
    let image = daemon.run("base").await.image;
    let path = format!("/images/{image}");
    let (status, body) = daemon.delete(&path).await;
    assert_eq!((status.as_u16(), body), (409, json!({"error": format!("image {image} is in use by base")})));

    daemon.delete("/vms/base?force=true").await;
    assert_eq!(daemon.delete(&path).await.0, 204);
    assert_eq!(daemon.delete(&path).await.0, 404);
    assert_eq!(daemon.get("/images").await.1, json!([]));
    assert_eq!(std::fs::read_dir(daemon.path().join("state/images")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_leave_half_a_vm() {
    let daemon = Daemon::start().await;
    let image = daemon.image().await;
    let body = json!({"name": "slow", "image": image, "kernel": daemon.config.monitor}).to_string();
    let mut client = daemon.connect().await;
    let request = Request::post("/vms").header("host", "pando").body(Full::from(body)).unwrap();
    let asked = tokio::spawn(async move { client.send_request(request).await.map(drop) });
    eventually("it starts", async || daemon.get("/vms/slow").await.1["state"] == "starting").await;

    asked.abort();

    eventually("it runs", async || daemon.get("/vms/slow").await.1["state"] == "running").await;
}
