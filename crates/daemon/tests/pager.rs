//! Forking by way of a pager.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use pando_wire::api::State;
use serde_json::{Value, json};
use support::{Daemon, eventually, exists, signal_kill};

async fn fork(daemon: &Daemon, parent: &str, children: Value) -> (u16, Value) {
    let body = json!({"children": children, "via": "pager"});
    let (status, report) = daemon.post(&format!("/vms/{parent}/fork"), body).await;
    (status.as_u16(), report)
}

async fn console(daemon: &Daemon, vm: &str) -> String {
    daemon.get(&format!("/vms/{vm}/logs")).await.1.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn children_run_in_monitors_of_their_own_and_know_where_they_come_from() {
    let daemon = Daemon::start().await;
    let parent = daemon.run("base").await;
    daemon.fork("base", &["deep"]).await;

    let (status, report) =
        fork(&daemon, "deep", json!([{}, {"name": "two", "env": {"B": "2"}}, {"name": "two"}])).await;

    assert_eq!(status, 200, "{report}");
    assert_eq!((&report["pause_us"], &report["guest_gap_us"]), (&json!(15), &json!(42)));
    assert_eq!(report["shared_pages"], 0);
    assert!(report["barrier_us"].is_u64());
    let errors: Vec<_> = report["children"].as_array().unwrap().iter().map(|child| child["error"].as_str()).collect();
    assert_eq!(errors, [None, None, Some("there is a VM called two already")]);
    let (deep, child) = (daemon.vm("deep").await, daemon.vm("two").await);
    assert_eq!((child.state, child.parent.as_deref()), (State::Running, Some(deep.id.as_str())));
    assert_eq!(child.env, [("A".into(), "1".into()), ("B".into(), "2".into())].into());
    for child in ["deep.1", "two"] {
        assert_eq!(console(&daemon, child).await, format!("woken {child}\ncopy of child of base with 2 layers\n"));
    }
    // Nothing of them is below or above another's.
    for vm in ["deep", "base"] {
        daemon.post(&format!("/vms/{vm}/kill"), Value::Null).await;
        daemon.delete(&format!("/vms/{vm}")).await;
    }
    assert!(!daemon.layer(&deep.id).exists() && !daemon.layer(&parent.id).exists());
    let (_, ran) = daemon.post("/vms/two/exec", json!({"argv": ["hostname"]})).await;
    assert_eq!(ran["stdout"], "two", "{ran}");
    assert_eq!(fork(&daemon, "two", json!([{"name": "three"}])).await.0, 200);
    assert_eq!(console(&daemon, "three").await, "woken three\ncopy of two with 1 layers\n");
}

#[tokio::test]
async fn the_copy_is_gone_when_its_children_have_all_and_nothing_is_left_of_one_that_fails() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let before = daemon.belongings();
    let (_, report) = fork(&daemon, "base", json!([{"name": "dies", "env": {"DIE": "1"}}, {"name": "refused"}])).await;
    let errors: Vec<_> =
        report["children"].as_array().unwrap().iter().map(|child| child["error"].as_str().unwrap()).collect();
    assert!(errors[0].contains("dies") && errors[1].contains("the machine is broken"), "{errors:?}");
    eventually("nothing is left", async || daemon.belongings() == before).await;
}

#[tokio::test]
async fn a_fork_that_cannot_be_is_refused_with_a_sentence_and_the_parent_goes_on() {
    let daemon = Daemon::start().await;
    for name in ["base", "untaught"] {
        daemon.run(name).await;
    }
    let left = || (daemon.monitors(), daemon.belongings().3);
    let before = left();
    for count in [0, 21] {
        let (status, body) = fork(&daemon, "base", json!(vec![json!({}); count])).await;
        let possible = "children by way of a pager are not possible: 1 to 20 are, and more by fork";
        assert_eq!((status, body["error"].as_str().unwrap()), (400, format!("{count} {possible}").as_str()));
    }
    let (status, body) = fork(&daemon, "untaught", json!([{}])).await;
    let because = json!(["its monitor is of an earlier build, which cannot serve its pages"]);
    assert_eq!((status, &body["error"], &body["because"]), (500, &json!("cannot copy untaught"), &because));
    eventually("nothing is left", async || left() == before).await;
    let (status, _) = daemon.post("/vms/base/fork", json!({"children": [{}], "via": "magic"})).await;
    assert_eq!(status, 400);
    assert_eq!(daemon.fork("untaught", &["child"]).await.children[0].error, None);

    daemon.post("/vms/base/checkpoint", json!({"name": "kept"})).await;
    let (status, body) = daemon.post("/checkpoints/kept/run", json!({"children": [{}], "via": "pager"})).await;
    let sentence = "a VM from a checkpoint is forked from its seed while it has one";
    assert_eq!((status.as_u16(), body["error"].as_str().unwrap()), (400, sentence));
}

#[tokio::test]
async fn a_child_whose_memory_arrives_is_whole_before_it_is_forked_and_does_not_depend_on_the_daemon() {
    let mut daemon = Daemon::start().await;
    daemon.run("base").await;
    let (_, report) = fork(&daemon, "base", json!([{"name": "arriving"}])).await;
    assert_eq!(report["children"][0]["error"], Value::Null, "{report}");
    daemon.stop().await;
    daemon.start_again().await;
    let child = daemon.vm("arriving").await;
    assert_eq!(child.state, State::Running);
    assert_eq!(daemon.fork("arriving", &["grandchild"]).await.children[0].error, None);
    signal_kill(child.pid.unwrap());
    eventually("its end", async || daemon.vm("arriving").await.state == State::Stopped).await;
    assert!(!exists(child.pid.unwrap()));
    assert_eq!(daemon.vm("grandchild").await.state, State::Running);
}
