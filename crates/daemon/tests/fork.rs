//! Forking.

mod support;

use pando_wire::api::State;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Daemon, eventually, exists, signal_kill};

#[tokio::test]
async fn children_run_and_know_where_they_come_from() {
    let daemon = Daemon::start().await;
    let parent = daemon.run("base").await;

    let (status, report) =
        daemon.post("/vms/base/fork", json!({"children": [{}, {"name": "two", "env": {"B": "2"}}, {}]})).await;

    assert_eq!(status, 200, "{report}");
    assert_eq!((&report["pause_us"], &report["guest_gap_us"]), (&json!(15), &json!(42)));
    let names: Vec<_> = report["children"].as_array().unwrap().iter().map(|child| &child["name"]).collect();
    assert_eq!(names, ["base.1", "two", "base.2"]);
    for child in report["children"].as_array().unwrap() {
        assert_eq!(child["error"], Value::Null);
        assert!(child["ready_us"].as_u64().unwrap() > 0);
        assert_eq!(child["phases_us"]["total"], 7);
    }
    let child = daemon.vm("two").await;
    assert_eq!((child.state, child.parent.as_deref()), (State::Running, Some(parent.id.as_str())));
    assert_eq!(child.env, [("A".into(), "1".into()), ("B".into(), "2".into())].into());
    assert_ne!(child.pid, parent.pid);
}

#[tokio::test]
async fn what_the_first_child_wrote_is_expected_of_those_after_it() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    assert_eq!(daemon.fork("base", &["first"]).await.expected_pages, 0);
    assert_eq!(daemon.fork("base", &["second"]).await.expected_pages, 3);
    // And again once it has run its first program; not after that, and not of another.
    for name in ["second", "first", "first"] {
        daemon.post(&format!("/vms/{name}/exec"), json!({"argv": ["echo"]})).await;
    }
    let mut count = 0;
    eventually("more is learned", async || {
        count += 1;
        daemon.fork("base", &[&format!("later-{count}")]).await.expected_pages == 4
    })
    .await;
    assert_eq!(daemon.fork("second", &["grandchild"]).await.expected_pages, 3, "what it was forked with is inherited");
    daemon.run("stranger").await;
    assert_eq!(daemon.fork("stranger", &["child"]).await.expected_pages, 0, "another VM has to be learned anew");
}

#[tokio::test]
async fn a_child_that_is_too_busy_to_say_what_it_wrote_keeps_nobody_waiting_and_is_learned_from_later() {
    let daemon = Daemon::start().await;
    daemon.run("busy").await;
    let before = Instant::now();
    assert_eq!(daemon.fork("busy", &["first"]).await.expected_pages, 0);
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    let mut count = 0;
    eventually("it is learned", async || {
        count += 1;
        daemon.fork("busy", &[&format!("later-{count}")]).await.expected_pages > 0
    })
    .await;
}

#[tokio::test]
async fn one_of_ten_children_fails_and_nine_run() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let names = ["a", "b", "c", "d", "base", "f", "g", "h", "i", "j"];

    let report = daemon.fork("base", &names).await;

    for (child, name) in report.children.iter().zip(names) {
        let error = (name == "base").then(|| "there is a VM called base already".to_owned());
        assert_eq!((child.name.as_str(), child.id.is_none(), &child.error), (name, error.is_some(), &error));
    }
    let (_, all) = daemon.get("/vms").await;
    assert_eq!(all.as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn what_children_may_have_in_common_is_told() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let children = json!({"children": [{"name": "own"}, {"name": "same", "env": {"NO_SEED": "1"}}]});
    let (_, report) = daemon.post("/vms/base/fork", children).await;
    assert!(report["barrier_us"].is_u64(), "{report}");
    assert_eq!((&report["children"][0]["reseeded"], &report["children"][1]["reseeded"]), (&json!(true), &json!(false)));

    // Its agent says that it cannot hold its programs any longer.
    daemon.run("restless").await;
    let (_, report) = daemon.post("/vms/restless/fork", json!({"children": [{}]})).await;
    assert!(report["barrier_us"].is_null() && report["children"][0]["error"].is_null(), "{report}");
}

#[tokio::test]
async fn children_fail_in_their_own_ways_and_leave_nothing() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let children = json!({"children": [
        {"name": "good"},
        {"name": "good"},
        {"name": "Bad"},
        {"name": "env", "env": {"": "x"}},
        {"name": "dies", "env": {"DIE": "1"}},
        {"name": "hooks", "env": {"FAIL": "1"}},
    ]});

    let (_, report) = daemon.post("/vms/base/fork", children).await;

    let errors: Vec<_> = report["children"].as_array().unwrap().iter().map(|child| child["error"].as_str()).collect();
    assert_eq!(errors[..2], [None, Some("there is a VM called good already")]);
    assert!(errors[2].unwrap().contains("cannot be a name"), "{errors:?}");
    assert!(errors[3].unwrap().contains("cannot be the name of a variable"), "{errors:?}");
    assert!(errors[4].unwrap().contains("dies"), "{errors:?}");
    // It runs, so that its owner can look into it.
    assert_eq!((errors[5], report["children"][5]["id"].is_string()), (Some("the hook 10-db failed"), true));
    assert_eq!(daemon.vm("hooks").await.state, State::Running);
    for gone in ["Bad", "env", "dies"] {
        assert_eq!(daemon.get(&format!("/vms/{gone}")).await.0, 404, "{gone}");
    }
    let layers = std::fs::read_dir(daemon.path().join("state/layers")).unwrap().count();
    assert_eq!(layers, 3, "base, good, hooks");
}

#[tokio::test]
async fn a_stopped_vm_cannot_be_forked_and_a_paused_one_can() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    daemon.post("/vms/base/pause", Value::Null).await;
    let report = daemon.fork("base", &["child"]).await;
    assert_eq!((report.children[0].error.as_deref(), report.guest_gap_us), (None, None));

    daemon.post("/vms/base/kill", Value::Null).await;
    let (status, body) = daemon.post("/vms/base/fork", json!({"children": [{}]})).await;
    assert_eq!((status.as_u16(), body), (409, json!({"error": "cannot fork base: it is stopped"})));
}

#[tokio::test]
async fn a_fork_has_1_to_250_children() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    for (count, expected) in [(0, 400), (251, 400), (250, 200)] {
        let children = vec![json!({}); count];
        let (status, report) = daemon.post("/vms/base/fork", json!({"children": children})).await;
        assert_eq!(status, expected, "{count}");
        if expected == 200 {
            let failed: Vec<_> =
                report["children"].as_array().unwrap().iter().filter(|child| child["id"].is_null()).collect();
            assert!(failed.is_empty(), "{failed:?}");
        }
    }
}

#[tokio::test]
async fn a_fork_that_the_monitor_refuses_leaves_nothing() {
    let daemon = Daemon::start().await;
    daemon.run("no-fork").await;
    let (status, body) = daemon.post("/vms/no-fork/fork", json!({"children": [{}, {}]})).await;
    assert_eq!(
        (status.as_u16(), body),
        (500, json!({"error": "cannot fork no-fork", "because": ["the disk is broken", "no space left on device"]}))
    );
    assert_eq!(daemon.get("/vms").await.1.as_array().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(daemon.path().join("run/vms")).unwrap().count(), 1);
}

#[tokio::test]
async fn layers_of_a_removed_parent_stay_until_the_last_child_goes() {
    let daemon = Daemon::start().await;
    let parent = daemon.run("base").await;
    daemon.fork("base", &["a", "b"]).await;
    assert_eq!(daemon.fork("a", &["grandchild"]).await.children[0].error, None);
    let child = daemon.vm("a").await;

    daemon.delete("/vms/base?force=true").await;
    daemon.delete("/vms/a?force=true").await;
    daemon.delete("/vms/b?force=true").await;

    assert_eq!(daemon.get("/vms/base").await.0, 404);
    assert!(daemon.layer(&parent.id).join("data").exists(), "the grandchild reads it");
    assert!(daemon.layer(&child.id).join("data").exists(), "the grandchild reads it");
    assert_eq!(daemon.vm("grandchild").await.state, State::Running);

    daemon.delete("/vms/grandchild?force=true").await;
    assert_eq!(std::fs::read_dir(daemon.path().join("state/layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_death_of_a_parent_does_not_hurt_its_children_and_theirs_leaves_no_zombie() {
    let daemon = Daemon::start().await;
    let parent = daemon.run("base").await;
    daemon.fork("base", &["child"]).await;
    let child = daemon.vm("child").await;

    signal_kill(parent.pid.unwrap());
    eventually("the parent is stopped", async || daemon.vm("base").await.state == State::Stopped).await;
    assert_eq!(daemon.vm("child").await.state, State::Running);

    let killed = Instant::now();
    signal_kill(child.pid.unwrap());
    eventually("the child is stopped", async || daemon.vm("child").await.state == State::Stopped).await;
    assert!(killed.elapsed() < Duration::from_secs(1));
    assert!(!exists(child.pid.unwrap()), "a zombie is left");
}

#[tokio::test]
async fn a_child_that_is_removed_before_it_is_born_does_not_live_on() {
    // Its turn used to be free during the fork: the row went at once, and the process, born after that, stayed for ever.
    let daemon = Daemon::start().await;
    daemon.run("late").await; // Its children take two seconds until they listen.
    let (report, removed) = tokio::join!(daemon.fork("late", &["one", "two"]), async {
        eventually("the child is there", async || daemon.get("/vms/one").await.0 == 200).await;
        let asked = Instant::now();
        let status = daemon.delete("/vms/one?force=true").await.0.as_u16();
        assert_eq!(daemon.monitors(), 2, "it is gone when the answer says so");
        (status, asked.elapsed())
    });

    assert!(removed.0 == 204 && removed.1 < Duration::from_secs(30), "{removed:?}");
    assert_eq!(report.children[1].error, None);
    assert_eq!(daemon.get("/vms/one").await.0, 404);
    assert_eq!(daemon.vm("two").await.state, State::Running);
    assert_eq!(daemon.monitors(), 2, "the parent's and that of the other child");
    for dir in ["state/vms", "state/layers", "run/vms"] {
        assert_eq!(std::fs::read_dir(daemon.path().join(dir)).unwrap().count(), 2, "{dir}");
    }
}

#[tokio::test]
async fn a_child_that_dies_before_its_agent_answers_is_known_at_once() {
    let daemon = Daemon::start().await;
    daemon.run("silent").await;
    let asked = Instant::now();
    let report = daemon.fork("silent", &["a", "b"]).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    let error = report.children[0].error.as_deref().unwrap();
    assert!(error.contains("monitor"), "{error}");
    assert_eq!(daemon.get("/vms").await.1.as_array().unwrap().len(), 1);
    assert_eq!(daemon.monitors(), 1, "nor is a zombie left");
}

#[tokio::test]
async fn five_hundred_children_come_and_go_and_leave_nothing() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let round = async |round: usize| {
        let names: Vec<_> = (0..5).map(|child| format!("c{round}-{child}")).collect();
        let report = daemon.fork("base", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let ids: Vec<_> = report.children.into_iter().map(|child| child.id.unwrap()).collect();
        for id in &ids {
            assert_eq!(daemon.delete(&format!("/vms/{id}?force=true")).await.0, 204);
        }
        ids
    };
    for warm in 0..3 {
        round(warm).await; // What is made once is made now.
    }
    let before = daemon.belongings();

    let mut ids = Vec::new();
    for number in 3..103 {
        ids.extend(round(number).await);
    }

    assert_eq!(ids.len(), 500);
    let mut after = daemon.belongings();
    // A connection of the last request may be on its way out.
    for _ in 0..500 {
        if after == before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        after = daemon.belongings();
    }
    assert_eq!(after, before);
    let groups = std::path::Path::new("/sys/fs/cgroup/pando");
    assert!(ids.iter().all(|id| !groups.join(id).exists()), "a control group is left");
}

/// Children of one fork, more than the host's CPUs can bring to life at the same time. The first has this environment.
fn many(env: &Value) -> Vec<Value> {
    let count = 4 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 1;
    let mut children = vec![json!({}); count];
    children[0]["env"] = env.clone();
    children
}

#[tokio::test]
async fn what_the_first_of_many_children_wrote_is_expected_of_its_own_siblings() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    let children = many(&json!({}));
    let (_, report) = daemon.post("/vms/base/fork", json!({"children": children})).await;
    assert!(report["children"].as_array().unwrap().iter().all(|child| child["error"].is_null()), "{report}");

    // What one was forked with is what it expects of its own children.
    for child in 1..=children.len() {
        let expected = daemon.fork(&format!("base.{child}"), &["grandchild"]).await.expected_pages;
        assert_eq!(expected, if child == 1 { 0 } else { 3 }, "child {child}");
        daemon.post("/vms/grandchild/kill", Value::Null).await;
        daemon.delete("/vms/grandchild").await;
    }
}

#[tokio::test]
async fn many_children_do_not_wait_for_the_first_where_it_fails_or_nothing_is_to_be_learned() {
    let daemon = Daemon::start().await;
    daemon.run("base").await;
    for (env, error) in [(json!({"DIE": "1"}), true), (json!({}), false), (json!({}), false)] {
        let before = Instant::now();
        let (_, report) = daemon.post("/vms/base/fork", json!({"children": many(&env)})).await;
        let errors: Vec<_> =
            report["children"].as_array().unwrap().iter().map(|child| child["error"].is_string()).collect();
        assert!(errors[0] == error && errors[1..].iter().all(|&failed| !failed), "{report}");
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    }
}

#[tokio::test]
async fn a_first_child_that_does_not_answer_keeps_the_others_waiting_for_a_while_only() {
    let daemon = Daemon::start().await;
    daemon.run("mute").await;
    let children = many(&json!({}));
    let before = Instant::now();
    let have_begun = async || {
        let (_, all) = daemon.get("/vms").await;
        all.as_array().unwrap().iter().filter(|vm| vm["pid"].is_u64()).count() == children.len() + 1
    };
    tokio::select! {
        forked = daemon.post("/vms/mute/fork", json!({"children": children})) => panic!("{forked:?}"),
        () = eventually("all have begun", have_begun) => (),
    }
    assert!(before.elapsed() > Duration::from_secs(4), "{:?}", before.elapsed());
}
