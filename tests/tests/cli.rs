//! What is typed wrongly, or asked of a VM that cannot do it: one clear sentence, and the exit status that says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm};
use std::sync::LazyLock;
use std::time::Duration;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;

/// A VM that runs, and one that does not.
fn vms() -> &'static (TestVm<'static>, TestVm<'static>) {
    static VMS: LazyLock<(TestVm<'static>, TestVm<'static>)> = LazyLock::new(|| {
        let daemon = TestDaemon::shared();
        let vms = (daemon.boot("up"), daemon.boot("down"));
        daemon.pando(&["stop", "--timeout", "60s", "down"]).ok();
        vms
    });
    &VMS
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn every_wrong_request_has_its_status_and_one_clear_sentence() {
    let (up, down) = vms();
    let daemon = TestDaemon::shared();
    let image = daemon.image();
    let long = "n".repeat(64);
    let before = daemon.vms().len();
    #[rustfmt::skip]
    let table: &[(i32, &str, &[&str])] = &[
        // Numbers and names out of bounds.
        (USAGE, "1..=250", &["fork", "up", "--count", "0"]),
        (USAGE, "1..=250", &["fork", "up", "--count", "100000"]),
        (USAGE, "-1", &["fork", "up", "--count", "-1"]),
        (USAGE, "count", &["fork", "up", "--count", "three"]),
        (USAGE, "cannot be used with", &["fork", "up", "--count", "2", "--name", "x"]),
        (USAGE, "1..=32", &["run", image, "--cpus", "0"]),
        (USAGE, "1..=32", &["run", image, "--cpus", "33"]),
        (USAGE, "memory", &["run", image, "--memory", "much"]),
        (USAGE, "1M is not in 128M to 64G", &["run", image, "--memory", "1M"]),
        (USAGE, "65G is not in 128M to 64G", &["run", image, "--memory", "65G"]),
        (FAILED, "UPPER", &["run", image, "--name", "UPPER"]),
        (USAGE, "--name", &["run", image, "--name", ""]),
        (FAILED, "name", &["run", image, "--name", &long]),
        (FAILED, "../up", &["run", image, "--name", "../up"]),
        (FAILED, "UPPER", &["fork", "up", "--name", "UPPER"]),
        // Names that are taken.
        (FAILED, "up", &["run", image, "--name", "up"]),
        (FAILED, "up", &["fork", "up", "--name", "up"]),
        (FAILED, "down", &["fork", "up", "--name", "down"]),
        // Nobody is called so.
        (NOT_FOUND, "nobody", &["inspect", "nobody"]),
        (NOT_FOUND, "nobody", &["exec", "nobody", "true"]),
        (NOT_FOUND, "nobody", &["fork", "nobody"]),
        (NOT_FOUND, "nobody", &["logs", "nobody"]),
        (NOT_FOUND, "nobody", &["pause", "nobody"]),
        (NOT_FOUND, "nobody", &["resume", "nobody"]),
        (NOT_FOUND, "nobody", &["start", "nobody"]),
        (NOT_FOUND, "nobody", &["stop", "nobody"]),
        (NOT_FOUND, "nobody", &["rm", "nobody"]),
        (NOT_FOUND, "nobody", &["cp", "nobody:/etc/passwd", "-"]),
        (NOT_FOUND, "nobody", &["exec", "no/body?x=nobody", "true"]),
        // What a variable that is not set makes of a command line.
        (USAGE, "<VM>", &["exec", "", "true"]),
        (USAGE, "[IMAGE]", &["run", ""]),
        // Asked of a VM that does not run.
        (FAILED, "down", &["fork", "down"]),
        (FAILED, "down", &["exec", "down", "true"]),
        (FAILED, "down", &["pause", "down"]),
        (FAILED, "down", &["resume", "down"]),
        (FAILED, "down", &["cp", "down:/etc/passwd", "-"]),
        // Asked of one that runs.
        (FAILED, "up", &["start", "up"]),
        (FAILED, "up", &["rm", "up"]),
        // Files and images.
        (NOT_FOUND, "/no/such/file", &["cp", "/no/such/file", "up:/tmp"]),
        (NOT_FOUND, "/no/such/file", &["cp", "up:/no/such/file", "/tmp"]),
        (NOT_FOUND, "/no/such/image", &["run", "/no/such/image"]),
        (NOT_FOUND, "ffffffff", &["run", "ffffffff"]),
        (NOT_FOUND, "/no/such/kernel", &["run", image, "--kernel", "/no/such/kernel"]),
        (FAILED, "it is no file", &["run", image, "--kernel", "/dev/zero"]),
        (FAILED, "cannot import the image", &["run", "/etc/passwd"]),
        (FAILED, "is in use by", &["images", "--rm", image]),
        (NOT_FOUND, "there is no image 0000", &["images", "--rm", "0000"]),
        // Variables.
        (USAGE, "=x", &["exec", "-e", "=x", "up", "true"]),
        (127, "nowhere", &["exec", "-w", "/nowhere", "up", "true"]),
        (127, "nobody-at-all", &["exec", "-u", "nobody-at-all", "up", "true"]),
    ];
    let mut wrong = Vec::new();
    for (code, words, args) in table {
        let run = daemon.pando(args);
        let sentence = run.stderr.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
        let clear = !sentence.is_empty() && !run.stderr.contains("panicked") && run.stderr.contains(words);
        if run.code != *code || !clear {
            wrong.push(format!("{args:?}: {} instead of {code}, {words:?} expected in: {}", run.code, run.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(daemon.vms().len(), before, "none of it made a VM");
    assert_eq!(up.sh("echo alive"), "alive");
    assert!(down.find().is_some());
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn an_agent_that_does_not_answer_is_said_so_and_nobody_waits_for_ever() {
    let (up, _) = vms();
    let daemon = TestDaemon::shared();
    daemon.pando(&["pause", "up"]).ok();
    let run = up.exec(&["true"]);
    daemon.pando(&["resume", "up"]).ok();
    assert!(run.took < Duration::from_secs(30), "{run:?}");
    let told = run.refused(FAILED);
    assert!(told.contains("paused"), "{told}");
    assert_eq!(up.sh("echo alive"), "alive", "and it answers again");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_that_is_dead_to_the_world_is_said_so_in_seconds() {
    // A VM of its own: one that stands still for so long may be given up.
    let daemon = TestDaemon::shared();
    let dead = vms().0.fork();
    dead.signal("STOP");
    let run = dead.exec(&["true"]);
    dead.signal("CONT");
    assert!(run.took < Duration::from_secs(30), "{run:?}");
    let told = run.refused(FAILED);
    assert!(told.contains(&format!("{} does not answer", dead.name())), "{told}");
    assert!(daemon.vms().iter().any(|vm| vm.name == dead.name()), "it is there");
    assert_eq!(dead.sh("echo alive"), "alive", "and answers again");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn lists_and_trees_show_who_was_forked_from_whom() {
    let (up, _) = vms();
    let child = up.fork();
    let grandchild = child.fork();
    let daemon = TestDaemon::shared();
    let list = daemon.pando(&["ls"]).ok();
    let row = |name: &str| list.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap().to_owned();
    assert!(row(grandchild.name()).contains(child.name()), "{list}");
    assert!(row("down").contains("stopped"), "{list}");
    let tree = daemon.pando(&["tree"]).ok();
    let depth = |name: &str| {
        let line = tree.lines().find(|line| line.split_whitespace().any(|word| word == name)).unwrap();
        line.find(name).unwrap()
    };
    assert!(depth("up") < depth(child.name()) && depth(child.name()) < depth(grandchild.name()), "{tree}");
    assert!(list.lines().chain(tree.lines()).all(|line| line.chars().count() <= 80), "{list}\n{tree}");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn events_tell_the_story_in_order() {
    let (up, _) = vms();
    let child = up.fork();
    let name = child.name().to_owned();
    let id = child.inspect().id;
    drop(child);
    let events = TestDaemon::shared().pando(&["events", "-o", "json"]).ok();
    let kinds: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<pando_wire::api::Event>(line).unwrap())
        .filter(|event| event.vm == name || event.vm == id)
        .map(|event| event.kind)
        .collect();
    let place = |kind: &str| kinds.iter().rposition(|seen| seen == kind).unwrap_or_else(|| panic!("{kind}: {kinds:?}"));
    assert!(place("created") < place("running") && place("running") < place("removed"), "{kinds:?}");
}
