//! checkpoint, and run --from.

use crate::daemon::Daemon;
use crate::exec::terminal;
use crate::pando::{Outcome, is, run, wait, with};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

fn checkpoint(state: &str, problem: Value) -> String {
    json!({
        "id": "i", "name": "warm", "vm": "web", "vm_id": "w", "state": state, "problem": problem, "image": "d",
        "cpus": 1, "memory_bytes": 1 << 28, "seed": null, "usage": null, "logical_bytes": null, "stored_bytes": null,
        "hashed_bytes": null, "created_ms": 0,
    })
    .to_string()
}

#[test]
fn a_checkpoint_is_made_and_its_name_printed() {
    let daemon = Daemon::saying(200, &checkpoint("saving", Value::Null));
    assert_eq!(run(&daemon, &["checkpoint", "create", "web"]), is(0, "warm\n", ""));
    assert_eq!(run(&daemon, &["checkpoint", "create", "web", "warm"]), is(0, "warm\n", ""));
    assert_eq!(run(&daemon, &["checkpoint", "web", "warm"]), is(0, "warm\n", ""));
    assert_eq!(daemon.asked_for(), ["POST /vms/web/checkpoint"; 3]);
    assert_eq!(run(&daemon, &["checkpoint", "web", "ls"]).code, 2, "is that a name?");
    assert_eq!(run(&daemon, &["checkpoint"]).code, 2);
    assert_eq!(daemon.asked()[2].body, daemon.asked()[1].body);
    let body = serde_json::from_slice::<Value>(&daemon.asked()[1].body).unwrap();
    assert_eq!(body, json!({"name": "warm"}));
}

#[test]
fn whoever_waits_hears_whether_it_is_stored() {
    let stored = Daemon::new(|what, _| match what {
        "GET /checkpoints/i" => (200, checkpoint("stored", Value::Null)),
        _ => (200, checkpoint("saving", Value::Null)),
    });
    assert_eq!(run(&stored, &["checkpoint", "create", "web", "--wait"]), is(0, "warm\n", ""));
    assert_eq!(stored.asked_for(), ["POST /vms/web/checkpoint", "GET /checkpoints/i"]);
    let failed = Daemon::saying(200, &checkpoint("failed", json!("the disk is full")));
    let said = "error: warm is in memory, and cannot be stored\n  because: the disk is full\n";
    assert_eq!(run(&failed, &["checkpoint", "create", "web", "--wait"]), is(1, "warm\n", said));
}

#[test]
fn checkpoints_are_removed_by_name_and_a_missing_one_has_its_status() {
    let daemon = Daemon::new(|what, _| match what {
        "DELETE /checkpoints/warm" => (204, String::new()),
        _ => (404, r#"{"error":"no checkpoint is called gone"}"#.into()),
    });
    let outcome = run(&daemon, &["checkpoint", "rm", "warm", "gone"]);
    assert_eq!(outcome, is(3, "warm\n", "error: no checkpoint is called gone\n"));
}

#[test]
fn an_export_is_a_file_when_it_is_whole() {
    let daemon = Daemon::new(|what, _| match what {
        "GET /checkpoints/warm/export" => (200, "all of it".into()),
        _ => (409, r#"{"error":"cannot export cold: it is not stored"}"#.into()),
    });
    let file = daemon.dir().join("file");
    let path = file.to_str().unwrap();
    assert_eq!(run(&daemon, &["checkpoint", "export", "warm", path]), is(0, "", ""));
    assert_eq!(std::fs::read(&file).unwrap(), b"all of it");
    assert_eq!(run(&daemon, &["checkpoint", "export", "warm", "-"]), is(0, "all of it", ""));
    let refused = is(1, "", "error: cannot export cold: it is not stored\n");
    assert_eq!(run(&daemon, &["checkpoint", "export", "cold", path]), refused);
    assert_eq!(std::fs::read(&file).unwrap(), b"all of it", "what was there is kept");
    let left = std::fs::read_dir(daemon.dir()).unwrap().flatten().filter(|it| it.file_name() != "p.sock").count();
    assert_eq!(left, 1, "nothing half-written is left");
}

#[test]
fn an_import_sends_the_file_and_prints_the_name() {
    let daemon = Daemon::saying(200, &checkpoint("stored", Value::Null));
    let file = daemon.dir().join("file");
    std::fs::write(&file, "all of it").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(run(&daemon, &["checkpoint", "import", path]), is(0, "warm\n", ""));
    assert_eq!(run(&daemon, &["checkpoint", "import", "--name", "a", path]), is(0, "warm\n", ""));
    let asked = daemon.asked();
    assert_eq!((asked[0].what.as_str(), &asked[0].body[..]), ("POST /checkpoints", &b"all of it"[..]));
    assert_eq!(asked[1].what, "POST /checkpoints?name=a");
    let gone = run(&daemon, &["checkpoint", "import", "/no/such/file"]);
    assert!(gone.code == 1 && gone.stderr.starts_with("error: cannot read /no/such/file\n"), "{gone:?}");
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "SECRET")];

fn run_with(daemon: &Daemon, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
    wait(with(daemon, arguments).envs(variables.iter().copied()).spawn().unwrap())
}

#[test]
fn a_push_sends_the_keys_of_the_environment_and_tells_what_was_sent() {
    let daemon = Daemon::saying(200, &json!({"sent": 3, "sent_bytes": 2048, "there": 4}).to_string());
    let push = ["checkpoint", "push", "warm", "s3://team/pando"];
    let told = is(0, "2 KiB sent in 3 files, 4 were there\n", "");
    assert_eq!(run_with(&daemon, &push, &KEYS), told);
    let more = [("AWS_SESSION_TOKEN", "TOKEN"), ("AWS_REGION", "north"), ("AWS_ENDPOINT_URL", "http://a")];
    let all = [&KEYS[..], &more].concat();
    assert_eq!(run_with(&daemon, &push, &all), told);
    let options = [&push[..], &["--endpoint", "http://b", "--region", "south"]].concat();
    assert_eq!(run_with(&daemon, &options, &all), told);
    let asked = daemon.asked();
    let bucket = |token: Value, region: Value, endpoint: Value| {
        json!({"bucket": {
            "url": "s3://team/pando", "endpoint": endpoint, "region": region, "access_key_id": "AKID",
            "secret_access_key": "SECRET", "session_token": token,
        }})
    };
    let bodies = asked.iter().map(|asked| serde_json::from_slice::<Value>(&asked.body).unwrap());
    let expected = [
        bucket(Value::Null, Value::Null, Value::Null),
        bucket("TOKEN".into(), "north".into(), "http://a".into()),
        bucket("TOKEN".into(), "south".into(), "http://b".into()),
    ];
    assert_eq!(bodies.collect::<Vec<_>>(), expected);
    assert_eq!(daemon.asked_for(), ["POST /checkpoints/warm/push"; 3]);
}

#[test]
fn a_terminal_shows_how_far_a_push_is() {
    let looked = AtomicBool::new(false);
    let daemon = Daemon::new(move |what, _| {
        if what.starts_with("GET /progress/") {
            looked.store(true, Relaxed);
            return (200, json!({"done": 3, "files": 8}).to_string());
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !looked.load(Relaxed) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(100)); // For what was answered to be shown.
        (200, json!({"sent": 3, "sent_bytes": 2048, "there": 5}).to_string())
    });
    let (ours, theirs) = terminal();
    let shown = thread::spawn(move || {
        let mut shown = Vec::new();
        // It ends with an error, when the program has ended.
        let _ = File::from(ours).read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    let mut push = with(&daemon, &["checkpoint", "push", "warm", "s3://team/pando"]);
    let child = push.envs(KEYS).env("TERM", "xterm").stderr(theirs).spawn().unwrap();
    drop(push); // It has the terminal's other end.
    assert_eq!(wait(child).stdout, "2 KiB sent in 3 files, 5 were there\n");
    let shown = shown.join().unwrap();
    assert!(shown.contains("pushing") && shown.contains("3/8 files"), "{shown:?}");
    let asked = daemon.asked_for();
    let name = asked[0].strip_prefix("GET /progress/").unwrap();
    assert_eq!(asked.last().unwrap(), &format!("POST /checkpoints/warm/push?progress={name}"));
}

#[test]
fn without_keys_nobody_is_asked() {
    let daemon = Daemon::saying(200, "");
    let said = "error: there are no credentials for s3://team: AWS_ACCESS_KEY_ID is not set\n";
    assert_eq!(run(&daemon, &["checkpoint", "push", "warm", "s3://team"]), is(2, "", said));
    let empty = [KEYS[0], ("AWS_SECRET_ACCESS_KEY", "")];
    let said = "error: there are no credentials for s3://team: AWS_SECRET_ACCESS_KEY is not set\n";
    assert_eq!(run_with(&daemon, &["checkpoint", "pull", "s3://team", "warm"], &empty), is(2, "", said));
    assert_eq!(daemon.asked_for(), [""; 0]);
}

#[test]
fn a_pull_prints_the_name_and_what_was_fetched() {
    let arrived: Value = serde_json::from_str(&checkpoint("stored", Value::Null)).unwrap();
    let body = json!({"checkpoint": arrived, "fetched": 3, "fetched_bytes": 2048, "here": 0});
    let daemon = Daemon::saying(200, &body.to_string());
    let pull = ["checkpoint", "pull", "s3://team", "cold", "--name", "warm"];
    assert_eq!(run_with(&daemon, &pull, &KEYS), is(0, "warm\n", "2 KiB fetched in 3 files, 0 were here\n"));
    let asked = &daemon.asked()[0];
    let sent: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!((asked.what.as_str(), &sent["checkpoint"]), ("POST /store/pull", &json!("cold")));
    assert_eq!((&sent["name"], &sent["bucket"]["url"]), (&json!("warm"), &json!("s3://team")));
    let refused =
        Daemon::saying(404, r#"{"error":"cannot pull cold","because":["no checkpoint in s3://team is called cold"]}"#);
    let said = "error: cannot pull cold\n  because: no checkpoint in s3://team is called cold\n";
    assert_eq!(run_with(&refused, &pull, &KEYS), is(3, "", said));
}

#[test]
fn vms_are_run_from_a_checkpoint_and_say_where_they_came_from() {
    let child = |name: &str, error: Value| json!({"name": name, "id": "i", "ready_us": 7300, "phases_us": {}, "reseeded": true, "error": error});
    let report = |warm: bool| {
        let children = [child("a.1", Value::Null), child("a.2", json!("the name is taken"))];
        json!({"checkpoint": "warm", "warm": warm, "prepare_us": 1, "fork_us": 2, "children": children}).to_string()
    };
    let daemon = Daemon::saying(200, &report(true));
    let outcome = run(&daemon, &["run", "--from", "warm", "--count", "2", "--prefix", "a", "-e", "B=2"]);
    let said = "forked from memory, ready in 7.30 ms\nerror: a.2: the name is taken\n";
    assert_eq!(outcome, is(1, "a.1\n", said));
    let asked = &daemon.asked()[0];
    assert_eq!(asked.what, "POST /checkpoints/warm/run");
    let env = json!({"B": "2"});
    let children = json!([{"name": "a.1", "env": env, "publish": []}, {"name": "a.2", "env": env, "publish": []}]);
    assert_eq!(serde_json::from_slice::<Value>(&asked.body).unwrap(), json!({"children": children}));

    let cold = run(&Daemon::saying(200, &report(false)), &["run", "--from", "warm"]);
    assert!(cold.stderr.starts_with("woken from the store, ready in 7.30 ms\n"), "{cold:?}");

    let daemon = Daemon::saying(200, &report(false));
    let run = ["run", "--from", "warm", "--bucket", "s3://team", "--bucket-cache", "1G", "--region", "north"];
    let remote = run_with(&daemon, &run, &KEYS);
    assert!(remote.stderr.starts_with("woken from the bucket, ready in 7.30 ms\n"), "{remote:?}");
    let asked = &daemon.asked()[0];
    assert_eq!(asked.what, "POST /store/run");
    let bucket = json!({
        "url": "s3://team", "endpoint": null, "region": "north", "access_key_id": "AKID", "secret_access_key": "SECRET",
        "session_token": null,
    });
    let children = json!([{"name": null, "env": {}, "publish": []}]);
    let expected = json!({"bucket": bucket, "checkpoint": "warm", "children": children, "cache_bytes": 1 << 30});
    assert_eq!(serde_json::from_slice::<Value>(&asked.body).unwrap(), expected);
    let without = run_with(&daemon, &run, &[]);
    let said = "error: there are no credentials for s3://team: AWS_ACCESS_KEY_ID is not set\n";
    assert_eq!(without, is(2, "", said));
}

#[test]
fn what_makes_no_sense_with_a_checkpoint_is_wrong_usage() {
    let daemon = Daemon::saying(200, "");
    for wrong in [
        &["run"][..],
        &["run", "--from", "warm", "image"],
        &["run", "--from", "warm", "--memory", "1G"],
        &["run", "--from", "warm", "--", "sh"],
        &["run", "--from", "warm", "--count", "0"],
        &["run", "--from", "warm", "--count", "2", "--name", "a"],
        &["run", "--count", "2", "image"],
        &["run", "--bucket", "s3://team", "image"],
        &["run", "--from", "warm", "--region", "north"],
        &["run", "--from", "warm", "--bucket-cache", "1G"],
        &["checkpoint", "rm"],
        &["checkpoint", "create"],
    ] {
        assert_eq!(run(&daemon, wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(daemon.asked_for(), [""; 0]);
}

#[test]
fn damage_is_named_and_room_is_told() {
    let damage = json!([{"path": "/s/packs/a", "problem": "its checksum is wrong", "affected": ["warm", "cold"]}]);
    let daemon = Daemon::saying(200, &json!({"checkpoints": 2, "bytes": 2048, "damage": damage}).to_string());
    let said = "error: /s/packs/a is damaged\n  because: its checksum is wrong\n  because: it affects warm, cold\n";
    assert_eq!(run(&daemon, &["checkpoint", "verify"]), is(1, "2 checkpoints, 2 KiB read, damaged\n", said));
    let collected = json!({
        "freed_bytes": 2048, "manifests": 1, "packs": 1, "compacted": 0, "damaged": [], "problem": null,
    });
    assert_eq!(run(&Daemon::saying(200, &collected.to_string()), &["checkpoint", "gc"]), is(0, "2 KiB\n", ""));
}
