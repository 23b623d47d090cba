//! Checkpoints: seeds, the store, and VMs from both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use pando_store::Store;
use pando_wire::api::{Checkpoint, CheckpointRunReport, CheckpointState, State};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Daemon, eventually, exists, signal_kill};

async fn create(daemon: &Daemon, vm: &str, name: &str) -> Checkpoint {
    let (status, checkpoint) = daemon.post(&format!("/vms/{vm}/checkpoint"), json!({"name": name})).await;
    assert_eq!(status, 200, "{checkpoint}");
    serde_json::from_value(checkpoint).unwrap()
}

async fn get(daemon: &Daemon, name: &str) -> Checkpoint {
    let (status, checkpoint) = daemon.get(&format!("/checkpoints/{name}")).await;
    assert_eq!(status, 200, "{checkpoint}");
    serde_json::from_value(checkpoint).unwrap()
}

async fn until(daemon: &Daemon, name: &str, state: CheckpointState) -> Checkpoint {
    eventually(&format!("{name} becomes {state:?}"), async || get(daemon, name).await.state == state).await;
    get(daemon, name).await
}

async fn run(daemon: &Daemon, checkpoint: &str, names: &[&str]) -> CheckpointRunReport {
    let children: Vec<_> = names.iter().map(|name| json!({"name": name, "env": {"B": "2"}})).collect();
    let (status, report) = daemon.post(&format!("/checkpoints/{checkpoint}/run"), json!({"children": children})).await;
    assert_eq!(status, 200, "{report}");
    serde_json::from_value(report).unwrap()
}

/// Ends the seed of a checkpoint that is stored, as nobody should.
async fn lose_seed(daemon: &Daemon, name: &str) {
    signal_kill(get(daemon, name).await.seed.unwrap());
    eventually("its seed is gone", async || get(daemon, name).await.seed.is_none()).await;
}

/// What could be left behind: monitors, seeds and page servers, and files but those of the store.
fn left(daemon: &Daemon) -> (usize, Vec<std::path::PathBuf>) {
    let (_, monitors, _, mut files) = daemon.belongings();
    let store = daemon.config.state_dir.join("store");
    files.retain(|file| !file.starts_with(&store));
    (monitors, files)
}

fn stored(daemon: &Daemon) -> Vec<String> {
    Store::open(&daemon.config.state_dir.join("store")).unwrap().checkpoints().unwrap()
}

fn layers(daemon: &Daemon) -> BTreeSet<String> {
    let all = std::fs::read_dir(daemon.config.state_dir.join("layers")).unwrap().flatten();
    all.map(|layer| layer.file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_vm_is_kept_as_a_seed_and_goes_on_while_it_is_stored() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("web").await;

    let made = create(&daemon, "web", "warm").await;

    assert_eq!((made.name.as_str(), made.vm.as_str(), &made.vm_id), ("warm", "web", &vm.id));
    assert_ne!(made.seed.unwrap(), vm.pid.unwrap());
    assert_eq!(daemon.vm("web").await.state, State::Running);
    let kept = until(&daemon, "warm", CheckpointState::Stored).await;
    assert_eq!((kept.logical_bytes, kept.hashed_bytes), (Some((512 << 20) + 32768), Some(2 * 4096)));
    assert!(kept.stored_bytes.unwrap() > 0 && kept.usage.unwrap().rss_bytes > 0 && kept.seed == made.seed);
    assert_eq!(stored(&daemon), std::slice::from_ref(&made.id));
    // A name is made up, as for a child.
    let (_, second) = daemon.post("/vms/web/checkpoint", json!({})).await;
    assert_eq!(second["name"], "web.1");
    let (_, all) = daemon.get("/checkpoints").await;
    let names: Vec<_> = all.as_array().unwrap().iter().map(|checkpoint| &checkpoint["name"]).collect();
    assert_eq!(names, ["warm", "web.1"]);
    assert_eq!(daemon.get("/vms").await.1.as_array().unwrap().len(), 1, "a seed is no VM");

    let (_, events) = daemon.get("/events").await;
    let events: Vec<Value> = events.as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |kind: &str, detail: &str| {
        events.iter().any(|event| event["kind"] == kind && event["vm"] == vm.id && event["detail"] == detail)
    };
    assert!(told("checkpointed", "warm, 15 µs pause") && told("stored", "warm"), "{events:?}");
}

#[tokio::test]
async fn what_cannot_be_checkpointed_is_refused_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    create(&daemon, "web", "warm").await;
    until(&daemon, "warm", CheckpointState::Stored).await;
    daemon.run("no-fork").await;
    daemon.run("over").await;
    daemon.post("/vms/over/kill", Value::Null).await;
    let before = left(&daemon);

    let refused = async |vm: &str, name: &str| {
        let (status, body) = daemon.post(&format!("/vms/{vm}/checkpoint"), json!({"name": name})).await;
        (status.as_u16(), body["error"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused("gone", "a").await, (404, "no VM is called gone".into()));
    assert_eq!(refused("web", "warm").await, (409, "there is a checkpoint called warm already".into()));
    assert_eq!(refused("over", "a").await, (409, "cannot checkpoint over: it is stopped".into()));
    assert_eq!(refused("no-fork", "a").await, (500, "cannot fork no-fork".into()));
    assert_eq!(refused("web", "No").await.0, 400);

    assert_eq!(daemon.get("/checkpoints").await.1.as_array().unwrap().len(), 1);
    assert_eq!(left(&daemon), before);
    assert_eq!(daemon.get("/checkpoints/gone").await.0, 404);
    assert_eq!(daemon.delete("/checkpoints/gone").await.0, 404);
    assert_eq!(daemon.post("/checkpoints/warm/run", json!({"children": []})).await.0, 400);
    assert_eq!(daemon.post("/checkpoints/gone/run", json!({"children": [{}]})).await.0, 404);
}

#[tokio::test]
async fn vms_are_forked_from_a_seed_also_when_the_vm_is_removed() {
    let daemon = Daemon::start().await;
    let vm = daemon.run("web").await;
    let made = create(&daemon, "web", "warm").await;
    assert_eq!(daemon.delete("/vms/web?force=true").await.0, 204);
    assert_eq!(layers(&daemon), [vm.id.clone()].into(), "its seed reads it");

    let report = run(&daemon, "warm", &["one", "two"]).await;

    assert!(report.warm && report.children.iter().all(|child| child.error.is_none()), "{report:?}");
    for name in ["one", "two"] {
        let child = daemon.vm(name).await;
        assert_eq!((child.state, child.parent.as_deref()), (State::Running, None));
        assert_eq!(child.env, [("A".into(), "1".into()), ("B".into(), "2".into())].into());
        // They take no memory of a VM that is gone, and can be forked and checkpointed themselves.
        assert_eq!(daemon.get(&format!("/vms/{name}/logs")).await.1, "forked child of child of web\n");
    }
    assert_eq!(daemon.fork("one", &["grandchild"]).await.children[0].error, None);
    // Again, with what the first of them wrote.
    let (_, report) = daemon.post("/checkpoints/warm/run", json!({"children": [{}, {"name": "one"}]})).await;
    assert_eq!((&report["children"][0]["name"], &report["children"][0]["error"]), (&json!("warm.1"), &Value::Null));
    assert_eq!(report["children"][1]["error"], "there is a VM called one already");

    // The layer goes with the last that reads it.
    until(&daemon, "warm", CheckpointState::Stored).await;
    assert_eq!(daemon.delete("/checkpoints/warm").await.0, 204);
    assert!(!exists(made.seed.unwrap()) && !daemon.sockets(&made.id).exists());
    assert!(layers(&daemon).contains(&vm.id));
    for name in ["one", "two", "grandchild", "warm.1"] {
        assert_eq!(daemon.delete(&format!("/vms/{name}?force=true")).await.0, 204);
    }
    assert_eq!(layers(&daemon), [].into());
    assert_eq!(daemon.monitors(), 0, "nor is a zombie left");
}

#[tokio::test]
async fn without_a_seed_vms_come_from_the_store() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    create(&daemon, "web", "warm").await;
    until(&daemon, "warm", CheckpointState::Stored).await;
    daemon.delete("/vms/web?force=true").await;
    lose_seed(&daemon, "warm").await;
    assert_eq!(layers(&daemon), [].into(), "the store needs no layer");
    let before = left(&daemon);

    let report = run(&daemon, "warm", &["one", "two", "refused", "dead", "no-boot"]).await;

    let errors: Vec<_> = report.children.iter().map(|child| child.error.clone().unwrap_or_default()).collect();
    assert!(!report.warm && errors[..2] == ["", ""], "{errors:?}");
    assert_eq!(errors[2], "cannot start refused: the machine is broken: no such device");
    assert!(errors[3].contains("dead") && errors[4].contains("no-boot"), "{errors:?}");
    for name in ["one", "two"] {
        let vm = daemon.vm(name).await;
        assert_eq!((vm.state, vm.parent, vm.memory_bytes), (State::Running, None, 512 << 20));
        let log = daemon.get(&format!("/vms/{name}/logs")).await.1;
        assert_eq!(log, format!("woken {name}\nchild of web of 1 layers\n"));
        assert_eq!(layers(&daemon).len(), 2);
    }
    assert_eq!(daemon.post("/vms/one/exec", json!({"argv": ["echo", "a"]})).await.1["stdout"], "a\n");

    for name in ["one", "two"] {
        assert_eq!(daemon.delete(&format!("/vms/{name}?force=true")).await.0, 204);
    }
    eventually("nothing is left, not of the page servers either", async || left(&daemon) == before).await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_stored_says_why_and_keeps_its_seed() {
    let mut daemon = Daemon::start().await;
    daemon.run("unsavable").await;
    create(&daemon, "unsavable", "warm").await;

    let failed = until(&daemon, "warm", CheckpointState::Failed).await;

    assert_eq!(failed.problem.as_deref(), Some("cannot store it: the disk is full"));
    assert!(run(&daemon, "warm", &["one"]).await.children[0].error.is_none());
    lose_seed(&daemon, "warm").await;
    let (status, body) = daemon.post("/checkpoints/warm/run", json!({"children": [{}]})).await;
    let sentence = "nothing can be run from warm: it could not be stored, and its seed is gone";
    assert_eq!((status.as_u16(), &body["error"]), (409, &json!(sentence)));

    // Nothing is left of it, and the next daemon says so.
    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(daemon.get("/checkpoints").await.1, json!([]));
    let events = daemon.get("/events").await.1;
    assert!(events.as_str().unwrap().contains("warm: its seed ended before it was stored"), "{events}");
}

#[tokio::test]
async fn seeds_outlive_the_daemon_and_what_is_not_stored_is_stored_by_the_next() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.run("late-to-store").await;
    let first = create(&daemon, "web", "first").await;
    until(&daemon, "first", CheckpointState::Stored).await;
    let second = create(&daemon, "late-to-store", "second").await;
    assert_eq!(second.state, CheckpointState::Saving);

    daemon.stop().await;
    assert!(exists(first.seed.unwrap()) && exists(second.seed.unwrap()));
    assert_eq!(stored(&daemon), std::slice::from_ref(&first.id));
    daemon.start_again().await;

    for made in [&first, &second] {
        let kept = until(&daemon, &made.name, CheckpointState::Stored).await;
        assert_eq!(kept.seed, made.seed);
        assert!(daemon.sockets(&made.id).exists());
        assert!(run(&daemon, &made.name, &[&format!("of-{}", made.name)]).await.warm);
    }
    // They are looked after, too.
    lose_seed(&daemon, "second").await;
    assert!(!daemon.sockets(&second.id).exists());
    assert!(!run(&daemon, "second", &["cold"]).await.warm);
}

#[tokio::test]
async fn a_seed_that_died_while_nobody_looked_leaves_what_is_stored() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.run("late-to-store").await;
    let kept = create(&daemon, "web", "kept").await;
    until(&daemon, "kept", CheckpointState::Stored).await;
    let lost = create(&daemon, "late-to-store", "lost").await;
    daemon.stop().await;
    for seed in [&kept, &lost] {
        signal_kill(seed.seed.unwrap());
    }
    // What belongs to no checkpoint.
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    let writer = store.writer().unwrap();
    let stray =
        pando_store::Checkpoint { name: "stray".into(), disks: Vec::new(), ..store.checkpoint(&kept.id).unwrap() };
    writer.reuse(stray.memory.unwrap()).unwrap();
    writer.publish(&stray).unwrap();
    drop(writer);
    daemon.start_again().await;

    let (_, all) = daemon.get("/checkpoints").await;
    assert_eq!((all.as_array().unwrap().len(), &all[0]["name"]), (1, &json!("kept")));
    assert_eq!((&all[0]["state"], &all[0]["seed"]), (&json!("stored"), &Value::Null));
    assert_eq!(stored(&daemon), [kept.id]);
    assert!(!run(&daemon, "kept", &["cold"]).await.warm);
}

/// Makes a checkpoint, and waits until it is stored; and what its seed said then.
async fn said(daemon: &Daemon, vm: &str, name: &str) -> (Checkpoint, String) {
    create(daemon, vm, name).await;
    let kept = until(daemon, name, CheckpointState::Stored).await;
    let said = said_in_store(daemon, &kept.id);
    (kept, said)
}

fn said_in_store(daemon: &Daemon, id: &str) -> String {
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    String::from_utf8(store.checkpoint(id).unwrap().machine.state).unwrap()
}

#[tokio::test]
async fn a_seed_is_held_against_the_newest_of_its_vm_that_is_stored_and_whose_seed_lives() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.run("other").await;
    let all_of = |vm: &str| format!("child of {vm} of 1 layers");
    let since = |vm: &str, earlier: &Checkpoint| {
        let Checkpoint { seed, id, .. } = earlier;
        format!("child of {vm} of 1 layers, disk as {}'s, as since {id}", seed.unwrap())
    };

    let (one, first) = said(&daemon, "web", "one").await;
    assert_eq!(first, all_of("web"));
    let (others, first) = said(&daemon, "other", "others").await;
    assert_eq!(first, all_of("other"), "never with another VM's");
    let (two, second) = said(&daemon, "web", "two").await;
    assert_eq!(second, since("web", &one));
    assert_eq!(said(&daemon, "web", "three").await.1, since("web", &two));
    lose_seed(&daemon, "three").await;
    assert_eq!(said(&daemon, "web", "four").await.1, since("web", &two));
    // Also after a daemon that was there when they were made.
    lose_seed(&daemon, "four").await;
    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(said(&daemon, "web", "five").await.1, since("web", &two));

    // The memory of a VM that falls asleep is saved as any other's; its disk stays.
    let before = stored(&daemon);
    assert_eq!(daemon.post("/vms/other/hibernate", Value::Null).await.0, 200);
    let asleep = stored(&daemon).into_iter().find(|id| !before.contains(id)).unwrap();
    let said_asleep = said_in_store(&daemon, &asleep);
    assert!(said_asleep.starts_with("child of other without its disk"), "{said_asleep}");
    assert!(said_asleep.ends_with(&format!(", as since {}", others.id)), "{said_asleep}");

    // It has the memory of another monitor when it has begun anew.
    daemon.post("/vms/web/kill", Value::Null).await;
    assert_eq!(daemon.post("/vms/web/start", Value::Null).await.0, 200);
    assert_eq!(said(&daemon, "web", "six").await.1, all_of("web"));
}

/// A seed of an earlier build ends the connection on which it is asked what it does not know of.
#[tokio::test]
async fn of_a_seed_that_does_not_tell_of_its_disk_the_memory_is_the_same_and_the_disk_is_stored() {
    let daemon = Daemon::start().await;
    daemon.run("untold").await;
    let (one, _) = said(&daemon, "untold", "one").await;
    let (_, second) = said(&daemon, "untold", "two").await;
    assert_eq!(second, format!("child of untold of 1 layers, as since {}", one.id));
}

#[tokio::test]
async fn where_what_is_stored_is_of_no_use_all_is_stored() {
    let daemon = Daemon::start().await;
    for vm in ["unwilling", "old-fashioned"] {
        daemon.run(vm).await;
        for name in ["one", "two"] {
            let (kept, all) = said(&daemon, vm, &format!("{vm}-{name}")).await;
            assert_eq!((all, kept.problem), (format!("child of {vm} of 1 layers"), None));
        }
    }
}

#[tokio::test]
async fn removing_a_checkpoint_that_is_being_stored_ends_that() {
    let daemon = Daemon::start().await;
    daemon.run("late-to-store").await;
    let before = left(&daemon);
    let made = create(&daemon, "late-to-store", "warm").await;

    assert_eq!(daemon.delete("/checkpoints/warm").await.0, 204);

    assert!(!exists(made.seed.unwrap()));
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(daemon.get("/checkpoints").await.1, json!([]));
    assert_eq!(stored(&daemon), [""; 0]);
    assert_eq!(left(&daemon), before);
}

#[tokio::test]
async fn garbage_is_collected_and_damage_is_found_by_the_names_of_checkpoints() {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    create(&daemon, "web", "warm").await;
    until(&daemon, "warm", CheckpointState::Stored).await;
    let (status, verified) = daemon.post("/store/verify", Value::Null).await;
    assert_eq!((status.as_u16(), &verified["checkpoints"], &verified["damage"]), (200, &json!(1), &json!([])));
    let packs = daemon.config.state_dir.join("store/packs");
    let pack = std::fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let (_, verified) = daemon.post("/store/verify", Value::Null).await;
    assert_eq!(verified["damage"][0]["affected"], json!(["warm"]), "{verified}");

    daemon.delete("/checkpoints/warm").await;
    let (status, collected) = daemon.post("/store/collect", Value::Null).await;
    assert_eq!(status, 200, "{collected}");
    let (_, verified) = daemon.post("/store/verify", Value::Null).await;
    assert_eq!(verified["checkpoints"], 0);
}

#[tokio::test]
async fn a_seed_is_kept_when_the_store_lost_what_was_written_down_as_stored() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    let made = create(&daemon, "web", "warm").await;
    until(&daemon, "warm", CheckpointState::Stored).await;
    daemon.stop().await;
    daemon.config.keep_seeds = std::time::Duration::from_secs(2);
    daemon.start_again().await;
    let store = Store::open(&daemon.config.state_dir.join("store")).unwrap();
    store.remove(&made.id).unwrap();

    tokio::time::sleep(std::time::Duration::from_secs(4)).await;

    assert_eq!(get(&daemon, "warm").await.seed, made.seed);
    assert!(run(&daemon, "warm", &["one"]).await.warm);
}

#[tokio::test]
async fn a_seed_that_nobody_uses_ends_once_it_is_stored_and_never_before() {
    let mut daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.run("unsavable").await;
    daemon.stop().await;
    daemon.config.keep_seeds = std::time::Duration::from_millis(500);
    daemon.start_again().await;
    create(&daemon, "web", "kept").await;
    create(&daemon, "unsavable", "only-here").await;
    until(&daemon, "kept", CheckpointState::Stored).await;

    eventually("its seed ends", async || get(&daemon, "kept").await.seed.is_none()).await;

    assert!(!run(&daemon, "kept", &["cold"]).await.warm);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(get(&daemon, "only-here").await.seed.is_some());
    assert!(run(&daemon, "only-here", &["warm"]).await.warm);
}
