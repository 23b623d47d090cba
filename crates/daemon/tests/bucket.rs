//! Checkpoints in a bucket, between daemons: of a real S3 server, on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the store's tests use more of it")]
#[path = "../../store/tests/bucket/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "the store's tests use more of it")]
#[path = "../../store/tests/bucket/server.rs"]
mod server;
mod support;

use hyper::{Method, Request};
use pando_store::{Bucket, BucketSpec, Store};
use pando_wire::api::Checkpoint;
use proxy::{Mood, Proxy};
use serde_json::{Value, json};
use server::Server;
use std::time::{Duration, Instant};
use support::{Daemon, eventually};

/// As a request has it.
fn bucket(spec: BucketSpec) -> Value {
    json!({
        "url": spec.to_string(), "endpoint": spec.endpoint, "access_key_id": "TheAccessKey",
        "secret_access_key": "TheSecretKey", "session_token": "TheToken",
    })
}

async fn push(daemon: &Daemon, name: &str, bucket: &Value) -> (u16, Value) {
    let (status, body) = daemon.post(&format!("/checkpoints/{name}/push"), json!({"bucket": bucket})).await;
    (status.as_u16(), body)
}

async fn pull(daemon: &Daemon, checkpoint: &str, bucket: &Value) -> (u16, Value) {
    let (status, body) = daemon.post("/store/pull", json!({"bucket": bucket, "checkpoint": checkpoint})).await;
    (status.as_u16(), body)
}

/// A daemon with a checkpoint that is stored.
async fn with_checkpoint(name: &str) -> (Daemon, Checkpoint) {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    let checkpoint = checkpoint(&daemon, name).await;
    (daemon, checkpoint)
}

async fn checkpoint(daemon: &Daemon, name: &str) -> Checkpoint {
    daemon.post("/vms/web/checkpoint", json!({"name": name})).await;
    let path = format!("/checkpoints/{name}");
    eventually("it is stored", async || daemon.get(&path).await.1["state"] == "stored").await;
    serde_json::from_value(daemon.get(&path).await.1).unwrap()
}

/// A daemon with the image that they need.
async fn with_image() -> Daemon {
    let daemon = Daemon::start().await;
    daemon.image().await;
    daemon
}

/// What a daemon has of checkpoints: those that it tells of, and those in its store. What seeds cost changes.
async fn kept(daemon: &Daemon) -> (Vec<Checkpoint>, Vec<String>) {
    let store = Store::create(&daemon.config.state_dir.join("store")).unwrap();
    let mut told: Vec<Checkpoint> = serde_json::from_value(daemon.get("/checkpoints").await.1).unwrap();
    told.iter_mut().for_each(|checkpoint| checkpoint.usage = None);
    (told, store.checkpoints().unwrap())
}

/// That a refusal is this sentence and cause, and tells no key.
#[track_caller]
fn assert_refused((status, body): (u16, Value), expected: u16, sentence: &str, cause: &str) {
    assert_eq!((status, &body["error"]), (expected, &json!(sentence)), "{body}");
    assert!(body["because"][0].as_str().unwrap().starts_with(cause), "{body}");
    let told = body.to_string();
    assert!(!["TheAccessKey", "TheSecretKey", "TheToken"].iter().any(|key| told.contains(key)), "{body}");
}

#[tokio::test]
async fn a_checkpoint_that_was_pushed_is_run_by_another_daemon() {
    let server = Server::start();
    let bucket = bucket(server.spec("round/trip"));
    let (from, made) = with_checkpoint("warm").await;

    let (status, pushed) = push(&from, "warm", &bucket).await;
    assert_eq!((status, &pushed["there"]), (200, &json!(0)), "{pushed}");
    assert!(pushed["sent"].as_u64().unwrap() >= 3 && pushed["sent_bytes"].as_u64().unwrap() > 0, "{pushed}");
    let (_, again) = push(&from, "warm", &bucket).await;
    assert_eq!(again, json!({"sent": 0, "sent_bytes": 0, "there": pushed["sent"]}));
    assert_eq!(from.delete("/checkpoints/warm").await.0, 204);

    let to = with_image().await;
    let (status, pulled) = pull(&to, "warm", &bucket).await;
    assert_eq!((status, &pulled["fetched"], &pulled["here"]), (200, &pushed["sent"], &json!(0)), "{pulled}");
    let arrived: Checkpoint = serde_json::from_value(pulled["checkpoint"].clone()).unwrap();
    let stored_bytes = pushed["sent_bytes"].as_u64();
    assert_eq!(arrived, Checkpoint { seed: None, usage: None, stored_bytes, hashed_bytes: None, ..made.clone() });
    let (status, report) = to.post("/checkpoints/warm/run", json!({"children": [{"name": "one"}]})).await;
    assert_eq!((status.as_u16(), &report["children"][0]["error"]), (200, &Value::Null), "{report}");
    assert_eq!(to.vm("one").await.env, [("A".into(), "1".into())].into());
    assert_eq!(to.get("/vms/one/logs").await.1, "woken one\nchild of web of 1 layers\n");
    assert_eq!(to.post("/store/verify", Value::Null).await.1["damage"], json!([]));
    // Back where it came from.
    assert_eq!(pull(&from, &made.id, &bucket).await.0, 200);
}

#[tokio::test]
async fn who_waits_for_a_transfer_can_see_how_far_it_is() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let bucket = bucket(proxy.spec("far"));
    let (from, _) = with_checkpoint("warm").await;
    let to = with_image().await;
    let (push, pull) = (json!({"bucket": bucket}), json!({"bucket": bucket, "checkpoint": "warm"}));
    for (daemon, path, body) in [(&from, "/checkpoints/warm/push", push), (&to, "/store/pull", pull)] {
        proxy.mood(Mood::Slow);
        let seen = async {
            let progress = async || daemon.get("/progress/mine").await.1;
            eventually("some is done", async || progress().await["done"].as_u64().is_some_and(|done| 0 < done)).await;
            let seen = progress().await;
            proxy.mood(Mood::Well);
            seen
        };
        let path = format!("{path}?progress=mine");
        let (seen, (status, told)) = tokio::join!(seen, daemon.post(&path, body));
        assert_eq!(status, 200, "{told}");
        let (done, files) = (seen["done"].as_u64().unwrap(), seen["files"].as_u64().unwrap());
        assert!(done <= files && 3 <= files, "{seen}");
        let (status, over) = daemon.get("/progress/mine").await;
        assert_eq!((status.as_u16(), over), (404, json!({"error": "nothing of that name goes on"})));
    }
    assert_eq!(to.post("/store/verify?progress=mine", Value::Null).await.0, 200);
}

#[tokio::test]
async fn of_several_of_a_name_the_one_that_was_made_last_is_pulled_and_an_older_one_by_its_id() {
    let server = Server::start();
    let bucket = bucket(server.spec("several"));
    let (from, older) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    from.delete("/checkpoints/warm").await;
    let newer = checkpoint(&from, "warm").await;
    let (both, again) = tokio::join!(push(&from, "warm", &bucket), push(&from, "warm", &bucket));
    assert_eq!((both.0, again.0), (200, 200), "two pushes at once are fine: {both:?} {again:?}");
    let to = with_image().await;
    assert_eq!(pull(&to, "warm", &bucket).await.1["checkpoint"]["id"], json!(newer.id));
    let renamed = json!({"bucket": bucket, "checkpoint": older.id, "name": "older"});
    let (_, pulled) = to.post("/store/pull", renamed).await;
    let arrived = &pulled["checkpoint"];
    assert_eq!((&arrived["id"], &arrived["name"]), (&json!(older.id), &json!("older")), "{pulled}");
}

#[tokio::test]
async fn what_cannot_be_kept_under_its_name_or_has_no_image_is_refused_before_it_is_fetched() {
    let server = Server::start();
    let bucket = bucket(server.spec("taken"));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    let (status, refused) = pull(&from, "warm", &bucket).await;
    assert_eq!((status, &refused["error"]), (409, &json!("there is a checkpoint called warm already")));
    let to = Daemon::start().await;
    let before = kept(&to).await;
    let (status, refused) = pull(&to, "warm", &bucket).await;
    let sentence = format!("cannot import warm: it needs image {}, which is to be imported first", made.image);
    assert_eq!((status, &refused["error"]), (409, &json!(sentence)));
    assert_eq!(kept(&to).await, before);
    to.run("web").await;
    checkpoint(&to, "warm").await;
    let before = kept(&to).await;
    let (status, refused) = pull(&to, "warm", &bucket).await;
    assert_eq!((status, &refused["error"]), (409, &json!("there is a checkpoint called warm already")));
    assert_eq!(pull(&to, "No name", &bucket).await.0, 400);
    assert_eq!(kept(&to).await, before);
}

#[tokio::test]
async fn wrong_keys_and_what_is_not_there_are_told_in_one_sentence() {
    let server = Server::start();
    let (daemon, _) = with_checkpoint("warm").await;
    let before = kept(&daemon).await;
    let right = bucket(server.spec("refused"));
    let spec = BucketSpec { bucket: "nowhere".into(), ..server.spec("x") };
    let nowhere = "there is no bucket s3://nowhere/x";
    assert_refused(push(&daemon, "warm", &bucket(spec.clone())).await, 404, "cannot push warm", nowhere);
    assert_refused(pull(&daemon, "cold", &bucket(spec)).await, 404, "cannot pull cold", nowhere);
    let absent = "s3://pando-test/refused holds no checkpoints";
    assert_refused(pull(&daemon, "cold", &right).await, 404, "cannot pull cold", absent);
    let (status, refused) =
        push(&daemon, "warm", &json!({"url": "here", "access_key_id": "", "secret_access_key": ""})).await;
    assert_eq!((status, &refused["error"]), (400, &json!("\"here\" is no bucket: s3://bucket/prefix is expected")));
    assert_eq!(push(&daemon, "gone", &right).await.0, 404);

    server.ask_for_credentials();
    let refuses = "s3://pando-test/refused refuses these credentials";
    assert_refused(push(&daemon, "warm", &right).await, 403, "cannot push warm", refuses);
    assert_refused(pull(&daemon, "cold", &right).await, 403, "cannot pull cold", refuses);
    assert_eq!(kept(&daemon).await, before);
}

#[tokio::test]
async fn what_is_not_stored_is_not_pushed() {
    let daemon = Daemon::start().await;
    daemon.run("unsavable").await;
    daemon.post("/vms/unsavable/checkpoint", json!({"name": "warm"})).await;
    eventually("it failed", async || daemon.get("/checkpoints/warm").await.1["state"] == "failed").await;
    let nowhere =
        json!({"url": "s3://bucket", "endpoint": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "b"});
    let (status, refused) = push(&daemon, "warm", &nowhere).await;
    assert_eq!((status, &refused["error"]), (409, &json!("cannot push warm: it is not stored")));
}

#[tokio::test]
async fn a_server_that_dies_meanwhile_leaves_nothing_that_is_offered() {
    let mut server = Server::start();
    let (pushes, pulls) = (Proxy::before(&server), Proxy::before(&server));
    let (half, whole) = (bucket(server.spec("half")), bucket(server.spec("whole")));
    let (from, made) = with_checkpoint("warm").await;
    let to = with_image().await;
    let before = kept(&to).await;
    assert_eq!(push(&from, "warm", &whole).await.0, 200);

    // Enough for the mark and some files, and not for all.
    pushes.mood(Mood::DieAfter(4 << 10));
    pulls.mood(Mood::Slow);
    let begun = Instant::now();
    let (through, from_there) = (bucket(pushes.spec("half")), bucket(pulls.spec("whole")));
    let dies = async {
        eventually("it is on its way", async || to.get("/checkpoints").await.1 != json!([])).await;
        pulls.mood(Mood::DieAfter(0));
    };
    let (pushed, pulled, ()) = tokio::join!(push(&from, "warm", &through), pull(&to, "warm", &from_there), dies);
    assert_refused(pushed, 502, "cannot push warm", "cannot ");
    assert_refused(pulled, 502, "cannot pull warm", "cannot read ");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let (status, refused) = pull(&to, "warm", &half).await;
    assert!(status == 404 && !refused.to_string().contains(&made.id), "nobody knows of it there: {refused}");
    assert_eq!(kept(&to).await, before);

    server.kill();
    assert_refused(pull(&to, "warm", &whole).await, 502, "cannot pull warm", "cannot read store in s3://");
    assert_eq!(kept(&to).await, before);
    server.restart();
    assert_eq!(push(&from, "warm", &half).await.0, 200);
    assert_eq!(pull(&to, "warm", &half).await.0, 200, "and nothing stands in the way of the whole one");
}

#[tokio::test]
async fn damage_in_the_bucket_is_refused_and_leaves_no_checkpoint() {
    let server = Server::start();
    let bucket = bucket(server.spec("damaged"));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    let to = with_image().await;
    let before = kept(&to).await;
    let pack = std::fs::read_dir(from.config.state_dir.join("store/packs")).unwrap().next().unwrap().unwrap();
    let (name, good) = (pack.file_name().into_string().unwrap(), std::fs::read(pack.path()).unwrap());
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    server.put(&format!("damaged/packs/{name}"), &bad);
    let cause = format!("packs/{name} is damaged");
    assert_refused(pull(&to, "warm", &bucket).await, 502, "cannot pull warm", &cause);
    server.put(&format!("damaged/packs/{name}"), &good);
    server.put(&format!("damaged/descriptions/warm/{}", made.id), b"anything");
    let cause = "its description is damaged";
    assert_refused(pull(&to, "warm", &bucket).await, 400, "cannot import the checkpoint", cause);
    assert_eq!(kept(&to).await, before);
    push(&from, "warm", &bucket).await;
    assert_eq!(pull(&to, "warm", &bucket).await.0, 200);
}

/// What a daemon knows of a checkpoint, changed, as it lies in a bucket.
async fn description(bucket: &Bucket, name: &str, id: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    const JSON_AT: usize = 56;
    let whole = bucket.description(name, id).await.unwrap().unwrap();
    let mut said: Value = serde_json::from_slice(&whole[JSON_AT..]).unwrap();
    change(&mut said);
    let json = said.to_string().into_bytes();
    let len = u32::try_from(json.len()).unwrap().to_le_bytes();
    [&whole[..20], &len, blake3::hash(&json).as_bytes(), &json].concat()
}

#[tokio::test]
async fn a_checkpoint_that_has_less_memory_than_is_said_of_it_is_refused_and_leaves_no_checkpoint() {
    let server = Server::start();
    let (there, bucket) = (Bucket::new(&server.spec("less")).unwrap(), bucket(server.spec("less")));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    let to = with_image().await;
    let before = kept(&to).await;
    let lie = description(&there, "warm", &made.id, |said| said["memory_bytes"] = json!(1_u64 << 40)).await;
    there.describe("warm", &made.id, lie).await.unwrap();
    let cause = "its memory or disk is not of the size that it says";
    assert_refused(pull(&to, "warm", &bucket).await, 400, "cannot import the checkpoint", cause);
    assert_eq!(kept(&to).await, before);
}

#[tokio::test]
async fn what_is_said_of_another_checkpoint_is_damage() {
    let server = Server::start();
    let (there, bucket) = (Bucket::new(&server.spec("other")).unwrap(), bucket(server.spec("other")));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    let other = "01a21525-7bb9-713e-ad29-9c7acbd81b35";
    let same = description(&there, "warm", &made.id, |_| ()).await;
    there.describe("other", other, same).await.unwrap();
    let to = with_image().await;
    let cause = "its description is damaged";
    assert_refused(pull(&to, "other", &bucket).await, 400, "cannot import the checkpoint", cause);
    assert_eq!(pull(&to, "warm", &bucket).await.0, 200);
}

/// Both would go on until the server's time is up, a minute, if nobody cared.
#[tokio::test]
async fn a_client_that_goes_away_ends_it_and_a_checkpoint_may_be_removed_from_under_a_push() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let (through, straight) = (bucket(proxy.spec("leaves")), bucket(server.spec("leaves")));
    let (from, made) = with_checkpoint("warm").await;
    assert_eq!(push(&from, "warm", &straight).await.0, 200);
    let to = with_image().await;
    let before = kept(&to).await;

    proxy.mood(Mood::Slow);
    let body = json!({"bucket": through, "checkpoint": "warm"});
    let asking = ask_and_leave(&to, "/store/pull", body).await;
    eventually("it is on its way", async || to.get("/checkpoints").await.1 != json!([])).await;
    proxy.mood(Mood::Stalled);
    asking.abort();
    eventually("nothing of it is left", async || kept(&to).await == before).await;

    let elsewhere = bucket(proxy.spec("elsewhere"));
    let asking = ask_and_leave(&from, "/checkpoints/warm/push", json!({"bucket": elsewhere})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(from.delete("/checkpoints/warm").await.0, 204, "nobody waits for a push");
    asking.abort();
    let leases = from.config.state_dir.join("store/writers");
    eventually("it holds nothing", async || {
        from.post("/store/collect", Value::Null).await;
        std::fs::read_dir(&leases).unwrap().count() == 0
    })
    .await;
    proxy.mood(Mood::Well);
    assert_eq!(pull(&to, &made.id, &straight).await.0, 200);
}

/// A request whose client goes away when the task is aborted.
async fn ask_and_leave(daemon: &Daemon, path: &str, body: Value) -> tokio::task::JoinHandle<()> {
    let stream = tokio::net::UnixStream::connect(&daemon.config.socket).await.unwrap();
    let body = http_body_util::Full::new(hyper::body::Bytes::from(body.to_string()));
    let request = Request::builder().method(Method::POST).uri(path).header("host", "pando").body(body).unwrap();
    tokio::spawn(async move {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::select! {
            _ = connection => (),
            answer = sender.send_request(request) => panic!("it was answered before anybody left: {answer:?}"),
        }
    })
}

async fn run(daemon: &Daemon, checkpoint: &str, bucket: &Value) -> (u16, Value) {
    let request = json!({"bucket": bucket, "checkpoint": checkpoint, "children": [{"name": "one"}, {}]});
    let (status, body) = daemon.post("/store/run", request).await;
    (status.as_u16(), body)
}

/// What everybody on this computer may read of the page servers of a checkpoint.
fn page_servers(id: &str) -> Vec<String> {
    let shown = |process: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        String::from_utf8_lossy(&[read("cmdline"), read("environ")].concat()).into_owned()
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(shown);
    all.filter(|shown| shown.contains(&format!("pages\0serve\0--name\0{id}\0"))).collect()
}

#[tokio::test]
async fn vms_are_run_from_a_checkpoint_that_stays_in_its_bucket_and_no_key_is_written_down() {
    let server = Server::start();
    let bucket = bucket(server.spec("stays"));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &bucket).await;
    let to = with_image().await;
    let before = kept(&to).await;
    let id = made.id.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watching = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeSet::new();
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            seen.extend(page_servers(&id));
        }
        seen
    });
    let (status, report) = run(&to, "warm", &bucket).await;
    drop(stop);
    let servers = watching.join().unwrap();
    assert!(!servers.is_empty() && servers.iter().all(|shown| !shown.contains("TheSecretKey")), "{servers:?}");
    assert_eq!((status, &report["checkpoint"], &report["warm"]), (200, &json!("warm"), &json!(false)), "{report}");
    let errors: Vec<_> = report["children"].as_array().unwrap().iter().map(|child| &child["error"]).collect();
    assert_eq!(errors, [&Value::Null; 2], "{report}");
    assert_eq!(to.vm("one").await.env, [("A".into(), "1".into())].into());
    assert_eq!(to.get("/vms/one/logs").await.1, "woken one\nchild of web of 1 layers\n");
    assert_eq!(kept(&to).await, before, "nobody here knows of the checkpoint");
    assert_eq!(to.post("/store/verify", Value::Null).await.1["damage"], json!([]));

    let mut grep = std::process::Command::new("grep");
    let found = grep.args(["-rlE", "TheSecretKey|TheToken|TheAccessKey"]).arg(to.path()).output().unwrap();
    assert_eq!((String::from_utf8_lossy(&found.stdout).as_ref(), found.status.code()), ("", Some(1)));
}

#[tokio::test]
async fn what_cannot_be_run_from_a_bucket_is_told_in_one_sentence_and_leaves_nothing() {
    let server = Server::start();
    let right = bucket(server.spec("refused"));
    let (from, made) = with_checkpoint("warm").await;
    push(&from, "warm", &right).await;
    let to = Daemon::start().await;
    let (status, refused) = run(&to, "warm", &right).await;
    let sentence = format!("cannot run warm: it needs image {}, which is to be imported first", made.image);
    assert_eq!((status, &refused["error"]), (409, &json!(sentence)));
    to.image().await;
    let absent = "no checkpoint in s3://pando-test/refused is called cold";
    assert_refused(run(&to, "cold", &right).await, 404, "cannot run cold", absent);
    assert_eq!(run(&to, "No name", &right).await.0, 400);
    let small = json!({"bucket": right, "checkpoint": "warm", "children": [{}], "cache_bytes": 1 << 20});
    let (status, refused) = to.post("/store/run", small).await;
    let sentence = "a cache of 1048576 bytes is too small: 256 MiB are needed";
    assert_eq!((status.as_u16(), &refused["error"]), (400, &json!(sentence)));
    server.ask_for_credentials();
    let refuses = "s3://pando-test/refused refuses these credentials";
    assert_refused(run(&to, "warm", &right).await, 403, "cannot run warm", refuses);
    assert_eq!(to.get("/vms").await.1, json!([]));
}
