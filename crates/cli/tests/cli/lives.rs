//! fork, stop and the like.

use crate::daemon::Daemon;
use crate::pando::{is, run};
use serde_json::{Value, json};

fn child(name: &str, error: Option<&str>) -> Value {
    json!({"name": name, "id": "i", "ready_us": 7300, "phases_us": {"seed": 900, "total": 7000}, "error": error})
}

fn report(children: &[Value]) -> String {
    json!({
        "parent": "web", "prepare_us": 900, "barrier_us": 700, "pause_us": 410, "park_us": 100, "save_us": 50,
        "seal_us": 10, "fork_us": 200,
        "resume_us": 50, "guest_gap_us": null, "shared_pages": 131072, "children": children,
    })
    .to_string()
}

#[test]
fn a_fork_names_its_children_and_says_what_it_cost() {
    let daemon = Daemon::saying(200, &report(&[child("review.1", None), child("review.2", None)]));
    let outcome = run(&daemon, &["fork", "web", "--count", "2", "--prefix", "review", "-e", "BRANCH=fix"]);
    assert_eq!(outcome, is(0, "review.1\nreview.2\n", "paused 410 µs, shared 512 MiB\n"));

    let asked = &daemon.asked()[0];
    assert_eq!(asked.what, "POST /vms/web/fork");
    let env = json!({"BRANCH": "fix"});
    let children =
        json!([{"name": "review.1", "env": env, "publish": []}, {"name": "review.2", "env": env, "publish": []}]);
    assert_eq!(serde_json::from_slice::<Value>(&asked.body).unwrap(), json!({"children": children}));
}

#[test]
fn a_barrier_that_was_missed_is_one_line_and_no_failure() {
    let missed = report(&[child("a", None)]).replace("\"barrier_us\":700", "\"barrier_us\":null");
    let daemon = Daemon::saying(200, &missed);
    let outcome = run(&daemon, &["fork", "web"]);
    let warning = "warning: the programs of web did not stand still: a random number may have been drawn in more than \
                   one VM";
    assert_eq!(outcome, is(0, "a\n", &format!("paused 410 µs, shared 512 MiB\n{warning}\n")));
}

#[test]
fn a_child_that_failed_is_told_and_the_others_are_named() {
    let daemon = Daemon::saying(200, &report(&[child("a", None), child("b", Some("the name is taken"))]));
    let outcome = run(&daemon, &["fork", "web", "-c", "2"]);
    assert_eq!(outcome, is(1, "a\n", "paused 410 µs, shared 512 MiB\nerror: b: the name is taken\n"));
}

#[test]
fn timings_are_the_result_when_asked_for_and_json_is_the_apis_body() {
    let body = report(&[child("a", None)]);
    let daemon = Daemon::saying(200, &body);
    let outcome = run(&daemon, &["fork", "web", "--timings"]);
    assert!(outcome.stdout.contains("CHILD  READY    SEED\na      7.30 ms  900 µs\n"), "{outcome:?}");
    assert_eq!(run(&daemon, &["fork", "web", "-o", "json"]), is(0, &format!("{body}\n"), ""));
}

#[test]
fn counts_and_names_that_make_no_sense_are_wrong_usage() {
    let daemon = Daemon::saying(200, &report(&[]));
    for arguments in [
        &["fork", "web", "--count", "0"][..],
        &["fork", "web", "--count", "251"],
        &["fork", "web", "--count", "2", "--name", "x"],
        &["fork", "web", "--prefix", "a", "--name", "x"],
        &["run", "img", "--cpus", "33"],
        &["run", "img", "--memory", "lots"],
        &["run", "img", "--memory", "127M"],
        &["run", "img", "--memory", "65G"],
        &["ls", "--json", "-o", "table"],
        &["exec", "web"],
        &["stop"],
        &["daemon", "--tcp", "127.0.0.1:0"],
        &["nonsense"],
    ] {
        let outcome = run(&daemon, arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}");
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn an_empty_name_is_wrong_usage_and_reaches_no_route() {
    // What a shell makes of a variable that is not set.
    let daemon = Daemon::saying(404, r#"{"error":"there is no such route"}"#);
    for arguments in [
        &["exec", "", "true"][..],
        &["fork", ""],
        &["fork", "web", "--name", ""],
        &["fork", "web", "--prefix", ""],
        &["inspect", ""],
        &["logs", ""],
        &["pause", ""],
        &["resume", ""],
        &["stop", ""],
        &["start", "web", ""],
        &["rm", "-f", ""],
        &["images", "--rm", ""],
        &["run", ""],
        &["run", "img", "--name", ""],
        &["cp", ":/etc", "."],
        &["cp", "x", ":/etc"],
        &["cp", "", "web:/etc"],
    ] {
        let outcome = run(&daemon, arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}: {outcome:?}");
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn json_is_refused_where_the_result_is_something_else() {
    let daemon = Daemon::saying(200, "{}");
    for arguments in [
        &["exec", "-o", "json", "web", "true"][..],
        &["logs", "--json", "web"],
        &["cp", "--json", "web:/etc", "-"],
        &["completions", "bash", "--json"],
        &["machine", "run", "--json", "--", "true"],
    ] {
        let outcome = run(&daemon, arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(outcome.stderr.starts_with("error: JSON was asked for, and this command prints "), "{outcome:?}");
    }
    assert!(daemon.asked().is_empty());
    assert_eq!(run(&daemon, &["exec", "web", "echo", "--json"]).stdout, "--json\n", "the program's own");
}

#[test]
fn several_vms_are_served_and_one_that_fails_does_not_keep_the_others_from_it() {
    let daemon = Daemon::new(|what, _| match what {
        "POST /vms/b/stop?timeout_ms=2500" => (404, r#"{"error":"no VM is called b"}"#.to_owned()),
        _ => (200, "{}".to_owned()),
    });
    let outcome = run(&daemon, &["stop", "--timeout", "2500ms", "a", "b", "c"]);
    assert_eq!(outcome, is(3, "a\nc\n", "error: no VM is called b\n"));
}

#[test]
fn each_command_asks_for_its_own_route() {
    let daemon = Daemon::saying(200, "{}");
    for (arguments, route) in [
        (&["pause", "a"][..], "POST /vms/a/pause"),
        (&["resume", "a"], "POST /vms/a/resume"),
        (&["hibernate", "a"], "POST /vms/a/hibernate"),
        (&["wake", "a"], "POST /vms/a/wake"),
        (&["start", "a"], "POST /vms/a/start"),
        (&["stop", "a"], "POST /vms/a/stop?timeout_ms=10000"),
        (&["rm", "a"], "DELETE /vms/a"),
        (&["rm", "-f", "a"], "DELETE /vms/a?force=true"),
    ] {
        assert_eq!(run(&daemon, arguments), is(0, "a\n", ""));
        assert_eq!(daemon.asked_for().last().map(String::as_str), Some(route));
    }
}

#[test]
fn a_refusal_comes_with_its_causes() {
    let daemon = Daemon::saying(409, r#"{"error":"cannot pause web","because":["it is stopped","it powered off"]}"#);
    let expected = "error: cannot pause web\n  because: it is stopped\n  because: it powered off\n";
    assert_eq!(run(&daemon, &["pause", "web"]), is(1, "", expected));
}
