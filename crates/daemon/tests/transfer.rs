//! Checkpoints on their way from one daemon to another.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Bytes;
use pando_store::Store;
use pando_wire::api::Checkpoint;
use serde_json::{Value, json};
use support::{Daemon, eventually, read};

/// A daemon with a checkpoint that is stored, and that as a stream.
async fn exported() -> (Daemon, Checkpoint, Bytes) {
    let daemon = Daemon::start().await;
    daemon.run("web").await;
    daemon.post("/vms/web/checkpoint", json!({"name": "warm"})).await;
    eventually("it is stored", async || daemon.get("/checkpoints/warm").await.1["state"] == "stored").await;
    let made = serde_json::from_value(daemon.get("/checkpoints/warm").await.1).unwrap();
    let answer = daemon.send(Method::GET, "/checkpoints/warm/export", Bytes::new()).await;
    assert_eq!(answer.status(), 200);
    let stream = answer.into_body().collect().await.unwrap().to_bytes();
    (daemon, made, stream)
}

async fn import(daemon: &Daemon, path: &str, stream: Bytes) -> (u16, Value) {
    let (status, body) = read(daemon.send(Method::POST, path, stream).await).await;
    (status.as_u16(), body)
}

/// What a daemon has of checkpoints: those that it tells of, and those in its store.
async fn kept(daemon: &Daemon) -> (Value, Vec<String>) {
    let store = Store::create(&daemon.config.state_dir.join("store")).unwrap();
    (daemon.get("/checkpoints").await.1, store.checkpoints().unwrap())
}

#[tokio::test]
async fn a_checkpoint_is_run_by_another_daemon_also_when_the_first_one_lost_it() {
    let (from, made, stream) = exported().await;
    from.delete("/checkpoints/warm").await;
    let to = Daemon::start().await;
    to.image().await;

    let (status, arrived) = import(&to, "/checkpoints", stream).await;

    assert_eq!(status, 200, "{arrived}");
    let arrived: Checkpoint = serde_json::from_value(arrived).unwrap();
    let expected = Checkpoint { seed: None, usage: None, stored_bytes: None, hashed_bytes: None, ..made.clone() };
    assert_eq!(serde_json::to_value(&arrived).unwrap(), serde_json::to_value(&expected).unwrap());
    let (status, report) =
        to.post("/checkpoints/warm/run", json!({"children": [{"name": "one", "env": {"B": "2"}}]})).await;
    assert_eq!((status.as_u16(), &report["children"][0]["error"]), (200, &Value::Null), "{report}");
    assert_eq!(to.vm("one").await.env, [("A".into(), "1".into()), ("B".into(), "2".into())].into());
    assert_eq!(to.get("/vms/one/logs").await.1, "woken one\nchild of web of 1 layers\n");
    let (_, verified) = to.post("/store/verify", Value::Null).await;
    assert_eq!((&verified["checkpoints"], &verified["damage"]), (&json!(1), &json!([])));
}

#[tokio::test]
async fn an_image_or_a_name_that_is_not_to_be_had_is_told_before_anything_is_stored() {
    let (from, made, stream) = exported().await;
    let to = Daemon::start().await;
    let before = kept(&to).await;

    let (status, refused) = import(&to, "/checkpoints", stream.clone()).await;
    let sentence = format!("cannot import warm: it needs image {}, which is to be imported first", made.image);
    assert_eq!((status, &refused["error"]), (409, &json!(sentence)));
    assert_eq!(kept(&to).await, before);

    assert_eq!(import(&from, "/checkpoints?name=other", stream.clone()).await.0, 409, "it is here");
    assert_eq!(from.get("/checkpoints").await.1.as_array().unwrap().len(), 1);
    to.run("web").await;
    to.post("/vms/web/checkpoint", json!({"name": "warm"})).await;
    let (status, refused) = import(&to, "/checkpoints", stream.clone()).await;
    assert_eq!((status, &refused["error"]), (409, &json!("there is a checkpoint called warm already")));
    assert_eq!(import(&to, "/checkpoints?name=No", stream.clone()).await.0, 400);
    let (status, arrived) = import(&to, "/checkpoints?name=other", stream).await;
    assert_eq!((status, &arrived["name"], &arrived["id"]), (200, &json!("other"), &json!(made.id)));

    // An image that it needs stays.
    assert_eq!(to.delete("/checkpoints/warm").await.0, 204);
    assert_eq!(to.delete("/vms/web?force=true").await.0, 204);
    assert_eq!(to.delete(&format!("/images/{}", made.image)).await.0, 409);
}

#[tokio::test]
async fn what_is_cut_or_damaged_is_refused_and_leaves_no_checkpoint() {
    let (_from, _, stream) = exported().await;
    let to = Daemon::start().await;
    to.image().await;
    let before = kept(&to).await;
    // Behind its last file a tar has nothing but zeros.
    let end = stream.iter().rposition(|&byte| byte != 0).unwrap();

    for step in 0..24 {
        let at = end * step / 24;
        let (status, refused) = import(&to, "/checkpoints", stream.slice(..at)).await;
        assert_eq!(
            (status, &refused["error"]),
            (400, &json!("cannot import the checkpoint")),
            "cut at {at}: {refused}"
        );
        assert!(!refused["because"][0].as_str().unwrap().is_empty());
        assert_eq!(kept(&to).await, before, "cut at {at}");
    }
    let (status, refused) = import(&to, "/checkpoints", b"no export at all".as_slice().into()).await;
    assert_eq!((status, &refused["because"][0]), (400, &json!("this is no export of a checkpoint")));

    let mut flips = 0;
    for step in 0..24 {
        let at = end * step / 24;
        let mut flipped = stream.to_vec();
        flipped[at] ^= 4;
        let (status, _) = import(&to, "/checkpoints", flipped.into()).await;
        if status == 200 {
            // Padding, or a time: nothing of the checkpoint.
            assert_eq!(to.post("/store/verify", Value::Null).await.1["damage"], json!([]), "flipped at {at}");
            assert_eq!(to.delete("/checkpoints/warm").await.0, 204);
        } else {
            assert_eq!(status, 400, "flipped at {at}");
            flips += 1;
        }
        assert_eq!(kept(&to).await, before, "flipped at {at}");
    }
    assert!(flips > 0);
    assert_eq!(import(&to, "/checkpoints", stream).await.0, 200, "and nothing stands in the way of the whole one");
}

#[tokio::test]
async fn what_is_not_stored_is_not_exported() {
    let daemon = Daemon::start().await;
    daemon.run("unsavable").await;
    daemon.post("/vms/unsavable/checkpoint", json!({"name": "warm"})).await;
    eventually("it failed", async || daemon.get("/checkpoints/warm").await.1["state"] == "failed").await;
    let (status, refused) = daemon.get("/checkpoints/warm/export").await;
    assert_eq!((status.as_u16(), &refused["error"]), (409, &json!("cannot export warm: it is not stored")));
    assert_eq!(daemon.get("/checkpoints/gone/export").await.0, 404);
}
