//! A VM that nobody uses hibernates by itself, and wakes when it is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, wait_for};
use pando_wire::api::State;
use std::time::{Duration, Instant};

/// Until an idle VM is in the store, which takes minutes in an emulated host that is not alone.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
#[ignore = "needs a Linux guest: make test"]
fn an_idle_vm_hibernates_and_wakes_where_it_was_and_one_that_computes_does_not() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    web.write("/tmp/count", "n=0; while [ $n -lt 500 ]; do n=$((n+1)); done; echo $n > /tmp/n; sleep 100000; echo $n");
    web.start("sh /tmp/count");
    wait_for("it has counted", LIMIT, || web.exec(&["test", "-s", "/tmp/n"]).code == 0);
    let counter = web.running("/tmp/count");
    let falls_asleep = |what: &str| {
        let start = Instant::now();
        wait_for(what, LIMIT, || web.inspect().state == State::Hibernated);
        eprintln!("{what}, after {:?}", start.elapsed());
        assert_eq!(web.inspect().pid, None);
    };

    assert_eq!(daemon.pando(&["config", "get", "idle-timeout"]).ok(), "off");
    assert_eq!(daemon.pando(&["config", "set", "idle-timeout", "5s"]).ok(), "");
    falls_asleep("it falls asleep");

    assert_eq!(web.read("/tmp/n"), "500");
    assert_eq!((web.running("/tmp/count"), counter.len()), (counter, 1));

    web.write("/tmp/compute", "while :; do :; done");
    web.start("sh /tmp/compute");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        assert_eq!(web.inspect().state, State::Running, "after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    web.end("/tmp/compute");
    falls_asleep("it falls asleep again");

    let events = daemon.pando(&["events"]).ok();
    assert_eq!(events.lines().filter(|line| line.ends_with("hibernated  web  idle")).count(), 2, "{events}");
    assert_eq!(daemon.pando(&["config", "unset", "idle-timeout"]).ok(), "");
}
