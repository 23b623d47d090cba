//! VMs that sleep in the store, and wake.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use futures_util::future::join_all;
use pando_store::{Checkpoint, Kind, PAGE_BYTES, Store};
use pando_wire::api::State;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use std::collections::BTreeSet;
use std::time::Duration;
use support::{Daemon, eventually, exists};

fn stored(daemon: &Daemon) -> Vec<String> {
    Store::open(&daemon.config.state_dir.join("store")).map_or(Vec::new(), |store| store.checkpoints().unwrap())
}

fn layers(daemon: &Daemon) -> BTreeSet<String> {
    let all = std::fs::read_dir(daemon.config.state_dir.join("layers")).unwrap().flatten();
    all.map(|layer| layer.file_name().into_string().unwrap()).collect()
}

/// How many disks there are in each of what is stored.
fn disks(daemon: &Daemon) -> Vec<usize> {
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    stored(daemon).iter().map(|name| store.checkpoint(name).unwrap().disks.len()).collect()
}

fn sockets(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.config.runtime_dir.join("vms")).unwrap().count()
}

async fn order(daemon: &Daemon, vm: &str, what: &str) -> (u16, String) {
    let (status, body) = daemon.post(&format!("/vms/{vm}/{what}"), Value::Null).await;
    (status.as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
}

async fn log(daemon: &Daemon, vm: &str) -> String {
    daemon.get(&format!("/vms/{vm}/logs")).await.1.as_str().unwrap().to_owned()
}

const DONE: (u16, String) = (200, String::new());

#[tokio::test]
async fn a_vm_sleeps_without_a_process_and_wakes_as_the_same_one() {
    let daemon = Daemon::start().await;
    let before = daemon.run("web").await;

    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);

    let asleep = daemon.vm("web").await;
    assert_eq!((asleep.state, asleep.pid, asleep.ending), (State::Hibernated, None, None));
    assert_eq!((daemon.monitors(), sockets(&daemon)), (0, 0));
    assert_eq!(layers(&daemon), BTreeSet::from([before.id.clone()]), "its disk is where it was");
    assert!(!exists(before.pid.unwrap()));
    assert_eq!(disks(&daemon), [0]);
    assert_eq!(daemon.get("/checkpoints").await.1, json!([]), "it is the VM's own");
    for what in ["hibernate", "resume", "start", "kill"] {
        assert_eq!(order(&daemon, "web", what).await, (409, format!("cannot {what} web: it is hibernated")));
    }
    assert_eq!(daemon.delete("/vms/web").await.0, 409);

    assert_eq!(order(&daemon, "web", "wake").await, DONE);

    let awake = daemon.vm("web").await;
    assert_eq!((awake.state, &awake.id, &awake.env), (State::Running, &before.id, &before.env));
    assert_eq!(log(&daemon, "web").await, "booted web\nslept as web\nchild of web without its disk\n");
    assert_eq!(order(&daemon, "web", "wake").await, (409, "cannot wake web: it is running".into()));
    // Again: what it was woken from is no longer needed then.
    let first = stored(&daemon);
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    assert_eq!(stored(&daemon).len(), 1);
    assert_ne!(stored(&daemon), first);
    assert_eq!(order(&daemon, "web", "wake").await, DONE);
    // It can be booted from its disk, and forked.
    assert_eq!(daemon.fork("web", &["child"]).await.children[0].error, None);
    assert_eq!(order(&daemon, "web", "kill").await, DONE);
    assert_eq!(order(&daemon, "web", "start").await, DONE);
    for vm in ["web", "child"] {
        assert_eq!(daemon.delete(&format!("/vms/{vm}?force=true")).await.0, 204);
    }
    assert_eq!((stored(&daemon).len(), layers(&daemon).len()), (0, 0));
    eventually("no page server is left", async || daemon.monitors() == 0).await;
}

#[tokio::test]
async fn a_vm_that_sleeps_is_woken_to_stand_still_and_to_be_stopped() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    for (what, then) in [("pause", State::Paused), ("resume", State::Running), ("stop", State::Stopped)] {
        if what != "resume" {
            assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
        }
        assert_eq!(order(&daemon, "web", what).await, DONE);
        assert_eq!(daemon.vm("web").await.state, then);
    }
    assert_eq!(log(&daemon, "web").await.matches("slept as").count(), 2);
}

#[tokio::test]
async fn a_vm_that_woke_just_now_is_forked_and_kept_and_falls_asleep_again() {
    let daemon = Daemon::start().await;
    daemon.run("lately").await;
    let fork = async || daemon.post("/vms/lately/fork", json!({"children": [{}]})).await.0;
    let keep = async || daemon.post("/vms/lately/checkpoint", json!({})).await.0;
    for _ in 0..2 {
        assert_eq!(order(&daemon, "lately", "hibernate").await, DONE);
        assert_eq!(order(&daemon, "lately", "wake").await, DONE);
    }
    assert_eq!(fork().await, 200);
    assert_eq!(order(&daemon, "lately", "hibernate").await, DONE);
    assert_eq!(order(&daemon, "lately", "wake").await, DONE);
    assert_eq!(keep().await, 200);
}

#[tokio::test]
async fn a_vm_that_sleeps_or_falls_asleep_is_woken_to_be_forked_and_to_be_kept() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    for (what, body) in [("fork", json!({"children": [{}]})), ("checkpoint", json!({}))] {
        let path = format!("/vms/web/{what}");
        assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
        let (status, told) = daemon.post(&path, body.clone()).await;
        assert_eq!(status, 200, "{told}");
        assert_eq!(daemon.vm("web").await.state, State::Running);

        // While it falls asleep, and twice while it sleeps.
        let (slept, first, second) = tokio::join!(
            order(&daemon, "web", "hibernate"),
            daemon.post(&path, body.clone()),
            daemon.post(&path, body.clone())
        );
        assert_eq!((slept.0, first.0.as_u16(), second.0.as_u16()), (200, 200, 200), "{slept:?} {first:?} {second:?}");
        order(&daemon, "web", "wake").await; // It may have fallen asleep last.
    }
}

#[tokio::test]
async fn what_a_vm_waited_for_as_it_woke_is_expected_when_it_wakes_again() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    let memory = || store.checkpoint(&stored(&daemon)[0]).unwrap().memory.unwrap();
    assert_eq!(order(&daemon, "web", "wake").await, DONE);
    let waited_for: Vec<_> = (0..100).map(|page| page * 3..page * 3 + 1).collect();
    store.note_working_set(memory(), &waited_for).unwrap();

    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);

    let expected = store.working_set(memory()).unwrap();
    assert!((50..100).contains(&expected.len()), "{} of 100: most of it", expected.len());
    assert!(expected.iter().all(|run| waited_for.contains(run)));
}

/// The daemon that woke it is not the one that forks it.
#[tokio::test]
async fn a_vm_that_woke_just_before_its_daemon_ended_is_forked_by_the_next() {
    let mut daemon = Daemon::start().await;
    daemon.run("lately").await;
    assert_eq!(order(&daemon, "lately", "hibernate").await, DONE);
    assert_eq!(order(&daemon, "lately", "wake").await, DONE);

    daemon.stop().await;
    daemon.start_again().await;

    assert_eq!(daemon.post("/vms/lately/fork", json!({"children": [{}]})).await.0, 200);
}

#[tokio::test]
async fn a_vm_whose_memory_does_not_come_is_stopped_by_others_while_it_is_to_be_forked() {
    let daemon = Daemon::start().await;
    daemon.run("far").await;
    assert_eq!(order(&daemon, "far", "hibernate").await, DONE);
    assert_eq!(order(&daemon, "far", "wake").await, DONE);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        order(&daemon, "far", "stop").await
    };
    let (fork, keep) = (json!({"children": [{}]}), json!({}));
    let (forked, kept, slept, stopped) = tokio::join!(
        daemon.post("/vms/far/fork", fork),
        daemon.post("/vms/far/checkpoint", keep),
        order(&daemon, "far", "hibernate"),
        stop
    );
    assert_eq!(stopped, DONE);
    assert_eq!((forked.0.as_u16(), &forked.1["error"]), (500, &json!("cannot fork far")), "{forked:?}");
    assert_eq!((kept.0.as_u16(), &kept.1["error"]), (500, &json!("cannot checkpoint far")), "{kept:?}");
    assert_eq!(slept, (500, "cannot hibernate far".into()));
    assert_eq!(daemon.get("/checkpoints").await.1, json!([]));
    assert_eq!(daemon.vm("far").await.state, State::Stopped);
}

#[tokio::test]
async fn a_layer_that_a_child_reads_stays_and_what_sleeps_is_removed_with_its_vm() {
    let daemon = Daemon::start().await;
    let web = daemon.run("web").await;
    daemon.fork("web", &["child"]).await;
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    assert!(layers(&daemon).contains(&web.id));
    assert_eq!(order(&daemon, "child", "kill").await, DONE);
    assert_eq!(order(&daemon, "child", "start").await, DONE);
    // What others read of its layer is not overwritten when it wakes.
    assert_eq!(order(&daemon, "web", "wake").await, DONE);
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    assert_eq!(daemon.post("/vms/child/checkpoint", json!({"name": "warm"})).await.0, 200);
    assert_eq!(order(&daemon, "child", "hibernate").await, DONE);
    assert_eq!(order(&daemon, "child", "wake").await, DONE);
    for vm in ["web", "child"] {
        assert!(
            log(&daemon, vm).await.contains(&format!("\nslept among readers as {vm}\n")),
            "{}",
            log(&daemon, vm).await
        );
    }
    assert_eq!(daemon.delete("/checkpoints/warm").await.0, 204);

    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);

    assert_eq!(stored(&daemon).len(), 1, "what the child was woken from");
    assert!(layers(&daemon).contains(&web.id));
    assert_eq!(daemon.delete("/vms/child?force=true").await.0, 204);
    assert_eq!((stored(&daemon).len(), layers(&daemon).len()), (0, 0));
}

#[tokio::test]
async fn a_vm_that_cannot_be_stored_runs_on() {
    let daemon = Daemon::start().await;
    for (vm, error) in [
        ("unsavable", "cannot store unsavable"),
        ("no-fork", "cannot fork no-fork"),
        ("unflushable", "cannot hibernate unflushable"),
    ] {
        let before = daemon.run(vm).await;
        let had = (daemon.monitors(), sockets(&daemon), layers(&daemon));

        assert_eq!(order(&daemon, vm, "hibernate").await, (500, error.into()));

        let after = daemon.vm(vm).await;
        assert_eq!((after.state, after.pid), (State::Running, before.pid));
        let ran = daemon.post(&format!("/vms/{vm}/exec"), json!({"argv": ["phase"]})).await.1;
        assert_eq!(ran["stdout"], "Running\n", "it was resumed");
        assert_eq!((daemon.monitors(), sockets(&daemon), layers(&daemon)), had);
        assert_eq!(stored(&daemon), [""; 0]);
        assert_eq!(order(&daemon, vm, "pause").await, DONE);
        assert_eq!(order(&daemon, vm, "resume").await, DONE);
    }
}

#[tokio::test]
async fn a_child_that_sleeps_wakes_with_the_layers_of_its_parent_that_was_removed_meanwhile() {
    let daemon = Daemon::start().await;
    let web = daemon.run("web").await;
    daemon.fork("web", &["child"]).await;
    let child = daemon.vm("child").await;
    assert_eq!(order(&daemon, "child", "hibernate").await, DONE);
    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);
    assert_eq!(layers(&daemon), BTreeSet::from([web.id, child.id]));

    assert_eq!(order(&daemon, "child", "wake").await, DONE);

    assert_eq!(daemon.vm("child").await.state, State::Running);
    assert_eq!(daemon.delete("/vms/child?force=true").await.0, 204);
    assert_eq!((stored(&daemon).len(), layers(&daemon).len()), (0, 0));
}

#[tokio::test]
async fn what_a_vm_woke_from_is_not_woken_again_when_its_monitor_dies_before_its_agent_answers() {
    let daemon = Daemon::start().await;
    let web = daemon.run("web").await;
    // At what a VM that woke is told last: by then it has run.
    let run = json!({"name": "short", "image": web.image, "kernel": daemon.path().join("kernel"), "env": {"DIE": "1"}});
    assert_eq!(daemon.post("/vms", run).await.0, 200);
    assert_eq!(order(&daemon, "short", "hibernate").await, DONE);

    assert_ne!(order(&daemon, "short", "wake").await.0, 200);

    assert_eq!(daemon.vm("short").await.state, State::Stopped);
    assert_eq!(order(&daemon, "short", "wake").await, (409, "cannot wake short: it is stopped".into()));
    assert_eq!(order(&daemon, "short", "start").await, DONE);
    assert_eq!(order(&daemon, "short", "hibernate").await, DONE);
    assert_eq!(stored(&daemon).len(), 1, "what it was woken from is gone");
}

/// Until version 5 of the database, a VM slept with its disk in the store, and without layers.
#[tokio::test]
async fn a_vm_that_an_earlier_build_put_to_sleep_with_its_disk_wakes() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    daemon.stop().await;
    let sleep = stored(&daemon).remove(0);
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    let slept = store.checkpoint(&sleep).unwrap();
    let writer = store.writer().unwrap();
    let layer = |kind, pages| {
        let mut layer = writer.layer(kind, pages).unwrap();
        layer.write(3, &[7; PAGE_BYTES]).unwrap();
        layer.finish().unwrap()
    };
    let pages = store.layer_pages(slept.memory.unwrap()).unwrap();
    let (memory, disk) = (Some(layer(Kind::Memory, pages)), layer(Kind::Disk, 8));
    store.remove(&sleep).unwrap();
    writer.publish(&Checkpoint { memory, disks: vec![disk], ..slept }).unwrap();
    let database =
        SqlitePool::connect_with(SqliteConnectOptions::new().filename(daemon.config.state_dir.join("pando.db")));
    let database = database.await.unwrap();
    sqlx::raw_sql("UPDATE vms SET layer = sleep; UPDATE layers SET layer = (SELECT sleep FROM vms)")
        .execute(&database)
        .await
        .unwrap();
    database.close().await;
    daemon.start_again().await;
    assert_eq!(layers(&daemon), BTreeSet::new());

    assert_eq!(order(&daemon, "web", "wake").await, DONE);

    assert_eq!(log(&daemon, "web").await.matches("slept with its disk as web").count(), 1);
    assert_eq!(layers(&daemon), BTreeSet::from([sleep]));
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    assert_eq!(disks(&daemon), [0]);
    assert_eq!(order(&daemon, "web", "wake").await, DONE);
    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);
    assert_eq!((stored(&daemon).len(), layers(&daemon).len()), (0, 0));
}

#[tokio::test]
async fn programs_wake_the_vm_that_they_are_run_in_once() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);

    // Some before it wakes, some while it does, and some after.
    let run_after = async |ms| {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        daemon.post("/vms/web/exec", json!({"argv": ["echo", "a"]})).await.1
    };
    let answers = join_all((0..30).map(|n| run_after(n * 2))).await;

    assert!(answers.iter().all(|answer| answer["stdout"] == "a\n"), "{answers:?}");
    assert_eq!(log(&daemon, "web").await.matches("slept as").count(), 1);
}

#[tokio::test]
async fn a_vm_whose_sleep_cannot_be_read_sleeps_on() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    assert_eq!(order(&daemon, "web", "hibernate").await, DONE);
    let store = daemon.config.state_dir.join("store");
    let away = daemon.config.state_dir.join("away");
    std::fs::rename(&store, &away).unwrap();

    assert_eq!(order(&daemon, "web", "wake").await.0, 500);

    assert_eq!(daemon.vm("web").await.state, State::Hibernated);
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    assert_eq!(order(&daemon, "web", "wake").await, DONE);
}
