//! ls, tree, inspect, images, events, logs.

use crate::daemon::Daemon;
use crate::pando::{is, run, with};
use std::io::{BufRead, BufReader};

fn vm(name: &str, parent: &str) -> String {
    format!(
        r#"{{"id":"id-{name}","name":"{name}","state":"running","ending":null,"parent":{parent},"image":"d1",
        "cpus":2,"memory_bytes":536870912,"command":[],"env":{{}},"pid":7,"created_ms":0,"owner":"o","epoch":1,
        "usage":null}}"#
    )
}

fn two() -> String {
    format!("[{},{}]", vm("review.1", r#""id-web""#), vm("web", "null"))
}

#[test]
fn ls_and_tree_print_tables_and_the_apis_body() {
    let daemon = Daemon::saying(200, &two());
    let table = run(&daemon, &["ls"]);
    assert!(table.stdout.starts_with("NAME      STATE    CPUS  MEMORY   PARENT  AGE\n"), "{}", table.stdout);
    assert!(table.stdout.contains("\nreview.1  running  2     512 MiB  web     "), "{}", table.stdout);
    assert_eq!(run(&daemon, &["ls", "-q"]), is(0, "review.1\nweb\n", ""));
    assert_eq!(run(&daemon, &["tree"]), is(0, "web          running   512 MiB\n└─ review.1  running   512 MiB\n", ""));
    for command in ["ls", "tree"] {
        assert_eq!(run(&daemon, &[command, "-o", "json"]), is(0, &format!("{}\n", two()), ""));
        assert_eq!(run(&daemon, &[command, "--json"]), is(0, &format!("{}\n", two()), ""));
    }
    assert_eq!(daemon.asked_for(), ["GET /vms"; 7]);
}

#[test]
fn a_name_cannot_reach_another_route() {
    let daemon = Daemon::saying(404, r#"{"error":"no VM is called ../images?x"}"#);
    let outcome = run(&daemon, &["inspect", "../images?x"]);
    assert_eq!(outcome, is(3, "", "error: no VM is called ../images?x\n"));
    assert_eq!(daemon.asked_for(), ["GET /vms/..%2Fimages%3Fx"]);
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error_with_its_place() {
    let outcome = run(&Daemon::saying(200, "[{]"), &["ls"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("error: cannot understand the daemon's answer to GET /vms\n  because: "));
    let outcome = run(&Daemon::saying(500, "oops"), &["ls"]);
    assert_eq!(outcome, is(1, "", "error: the daemon answers 500 Internal Server Error to GET /vms\n"));
}

#[test]
fn an_unknown_route_is_not_taken_for_a_missing_vm() {
    for answer in ["", r#"{"error":"there is no such route"}"#] {
        let outcome = run(&Daemon::saying(404, answer), &["events"]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
    }
}

#[test]
fn nothing_is_cut_in_a_pipe_whatever_columns_says() {
    let name = "n".repeat(63);
    let daemon = Daemon::saying(200, &format!("[{}]", vm(&name, "null")));
    for list in ["ls", "tree"] {
        let narrow = crate::pando::wait(with(&daemon, &[list]).env("COLUMNS", "40").spawn().unwrap());
        assert!(narrow.stdout.contains(&name), "{narrow:?}");
    }
}

#[test]
fn events_are_lines_and_json_passes_them_through() {
    let event = |vm: &str| format!("{{\"seq\":1,\"at_ms\":0,\"vm\":\"{vm}\",\"kind\":\"created\",\"detail\":\"\"}}\n");
    let lines = event("id-web") + &event("id-removed");
    let answer = lines.clone();
    let daemon = Daemon::new(move |what, _| match what {
        "GET /vms" => (200, two()),
        _ => (200, answer.clone()),
    });
    let line = |vm: &str| format!("     1  1970-01-01 00:00:00  created   {vm}\n");
    assert_eq!(run(&daemon, &["events"]), is(0, &(line("web") + &line("id-removed")), ""));
    assert_eq!(run(&daemon, &["events", "-f", "--after", "7", "-o", "json"]), is(0, &lines, ""));
    let asked = daemon.asked_for();
    assert_eq!(asked.first().unwrap(), "GET /events?after=0&follow=false");
    assert_eq!(asked.last().unwrap(), "GET /events?after=7&follow=true");
}

#[test]
fn logs_are_printed_as_they_are() {
    let daemon = Daemon::saying(200, "boot\r\nno newline");
    assert_eq!(run(&daemon, &["logs", "-f", "web"]), is(0, "boot\r\nno newline", ""));
    assert_eq!(daemon.asked_for(), ["GET /vms/web/logs?follow=true"]);
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let daemon = Daemon::saying(200, &"a line\n".repeat(1 << 20));
    let mut child = with(&daemon, &["logs", "web"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap(); // And closes it.
    let outcome = crate::pando::wait(child);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (141, ""));
}

#[test]
fn images_are_listed_and_removed() {
    let digest = "d".repeat(64);
    let daemon = Daemon::saying(200, &format!(r#"[{{"digest":"{digest}","size_bytes":1073741824}}]"#));
    let table = format!("{:64}  SIZE\n{digest}  1 GiB\n", "DIGEST");
    assert_eq!(run(&daemon, &["images"]), is(0, &table, ""));
    assert_eq!(run(&daemon, &["images", "--rm", "abc"]), is(0, "abc\n", ""));
    assert_eq!(daemon.asked_for(), ["GET /images", "DELETE /images/abc"]);
}

#[test]
fn a_port_is_opened_printed_listed_and_closed() {
    let url = "http://3000-web.localhost:7080/?pando-token=t";
    let port = format!(r#"{{"vm":"web","port":3000,"public":false,"url":"{url}","token":"t","problem":null}}"#);
    let (one, all) = (port.clone(), format!("[{port}]"));
    let daemon = Daemon::new(move |what, _| match what {
        "GET /vms/web/ports" => (200, all.clone()),
        _ => (200, one.clone()),
    });
    assert_eq!(run(&daemon, &["port", "web", "3000"]), is(0, &format!("{url}\n"), ""));
    assert_eq!(run(&daemon, &["port", "web", "3000", "--json"]), is(0, &format!("{port}\n"), ""));
    run(&daemon, &["port", "web", "3000", "--public"]);
    run(&daemon, &["port", "web", "3000", "--private"]);
    let table = format!("PORT  ACCESS   URL\n3000  private  {url}\n");
    assert_eq!(run(&daemon, &["port", "web"]), is(0, &table, ""));
    assert_eq!(run(&daemon, &["port", "web", "3000", "--close"]), is(0, "", ""));
    let asked = daemon.asked();
    let bodies: Vec<_> = asked.iter().map(|asked| std::str::from_utf8(&asked.body).unwrap()).collect();
    let unsaid = r#"{"public":null}"#;
    assert_eq!(bodies, [unsaid, unsaid, r#"{"public":true}"#, r#"{"public":false}"#, "", ""]);
    assert_eq!(asked[5].what, "DELETE /vms/web/ports/3000");
    for wrong in
        [&["port", "web", "0"][..], &["port", "web", "--public"], &["port", "web", "80", "--public", "--close"]]
    {
        assert_eq!(run(&daemon, wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn a_port_without_a_url_is_an_error_that_says_why() {
    let port =
        r#"{"vm":"web","port":80,"public":true,"url":null,"token":null,"problem":"the daemon serves no previews"}"#;
    let outcome = run(&Daemon::saying(200, port), &["port", "web", "80"]);
    assert_eq!(outcome, is(1, "", "error: the daemon serves no previews\n"));
}
