//! What listens in real guests, as a browser sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::web::Page;
use pando_tests::{TestDaemon, TestVm, wait_for};
use pando_wire::api::State;
use std::io::Write;
use std::time::{Duration, Instant};

/// Until a guest in an emulated host has woken and answered.
const LIMIT: Duration = Duration::from_secs(180);
/// Where busybox's httpd listens in the guest.
const PORT: u16 = 3000;

/// What `path` of a VM is, asked for with its token.
fn get(vm: &TestVm<'_>, path: &str) -> String {
    Page::open(vm, PORT).get(path)
}

#[track_caller]
fn assert_says(answer: &str, words: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\n{words}")), "{answer}");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_and_its_forks_answer_under_their_own_names_and_one_that_sleeps_wakes_for_it() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    web.sh("mkdir -p /srv");
    web.write("/srv/who", "web");
    web.start(&format!("httpd -f -p 127.0.0.1:{PORT} -h /srv"));
    assert_says(&get(&web, "/who"), "web");

    let (_, forks) = web.fork_with(&["--count", "2"]);
    for fork in &forks {
        let listed = daemon.pando(&["port", fork.name()]).ok();
        assert_eq!(listed, "PORT  ACCESS  URL", "a fork has no open ports");
        fork.write("/srv/who", fork.name());
    }
    for vm in forks.iter().chain([&web]) {
        assert_says(&get(vm, "/who"), vm.name());
    }

    daemon.pando(&["hibernate", "web"]).ok();
    assert_eq!(web.inspect().state, State::Hibernated);
    let start = Instant::now();
    assert_says(&get(&web, "/who"), "web");
    eprintln!("woken and answered after {:?}", start.elapsed());
    assert_eq!(web.inspect().state, State::Running);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_connection_of_the_parent_goes_on_and_the_childs_server_notices_that_its_client_is_gone() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    // A server that says when its client is gone.
    let listen = format!("nc -l -p {PORT} < /tmp/silence > /tmp/heard; echo over > /tmp/over");
    web.write("/tmp/serve", &format!("mkfifo /tmp/silence; sleep 100000 > /tmp/silence & {listen}"));
    web.start("sh /tmp/serve");
    let page = Page::open(&web, PORT);
    wait_for("it listens", LIMIT, || web.sh("netstat -ltn").contains(&format!(":{PORT} ")));
    let mut stream = page.connect();
    let request = format!(
        "PUT / HTTP/1.1\r\nHost: {}\r\nPando-Token: {}\r\nContent-Length: 8\r\n\r\nhalf",
        page.host, page.token
    );
    stream.write_all(request.as_bytes()).unwrap();
    wait_for("the server hears it", LIMIT, || web.read("/tmp/heard").ends_with("half"));

    let fork = web.fork();
    wait_for("the child's server notices", LIMIT, || fork.exec(&["test", "-e", "/tmp/over"]).code == 0);
    assert_ne!(web.exec(&["test", "-e", "/tmp/over"]).code, 0);
    stream.write_all(b"more").unwrap();
    wait_for("the parent's server hears the rest", LIMIT, || web.read("/tmp/heard").ends_with("halfmore"));
    assert!(fork.read("/tmp/heard").ends_with("half"));
}
