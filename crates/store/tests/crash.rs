//! Killed writers, at any moment: what was reported done is there, and nothing else is offered.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

mod common;

use common::{CHURN_PAGES, assert_memory, churned, numbered, publish, temporary};
use pando_store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often writers are killed: `PANDO_STORE_KILLS`, or as often as fits in 15 seconds, but 100 times at least.
const KILLS: &str = "PANDO_STORE_KILLS";
const TIME: Duration = Duration::from_secs(15);
/// How long it goes on if there is something in whose middle none was killed yet.
const LONGEST: Duration = Duration::from_secs(180);
/// In the middle of what some are to be killed.
const MIDDLES: [&str; 3] = ["publishing", "collecting", "importing"];

fn helper(args: &[&str]) -> Child {
    let program = env!("CARGO_BIN_EXE_store-test-writer");
    Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// What a writer does until it is killed. In turn, so that there are kills in each.
const MODES: [&str; 3] = ["churn", "collect", "import"];

/// Kills a writer, and returns what must be there, what may be gone, and what the writer was doing.
fn kill(mut writer: Child) -> (BTreeSet<String>, BTreeSet<String>, String) {
    writer.kill().unwrap();
    writer.wait().unwrap();
    let mut said = String::new();
    writer.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let names = |word| said.lines().filter_map(|line| line.strip_prefix(word)).map(str::to_owned).collect();
    let (done, removed): (BTreeSet<String>, BTreeSet<String>) = (names("done "), names("removing "));
    let during = said.lines().rev().find_map(|line| line.strip_prefix("now ")).unwrap_or("starting").to_owned();
    (done.difference(&removed).cloned().collect(), removed, during)
}

#[test]
fn nothing_reported_done_is_lost_and_nothing_half_written_is_offered_when_writers_are_killed() {
    let kills = std::env::var(KILLS).ok().map(|kills| kills.parse::<u64>().unwrap());
    let directory = temporary();
    let path = directory.path().to_str().unwrap();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "kept", 50, &numbered(50, 7)).unwrap();
    let mut killed_during: BTreeMap<String, u64> = BTreeMap::new();
    let elsewhere = temporary();
    let exports = elsewhere.path();
    let (begun, mut random, mut killed, mut published) = (Instant::now(), 0x2545_f491_4f6c_dd1d_u64, 0, 0);
    let is_missed = |during: &BTreeMap<String, u64>| MIDDLES.iter().any(|&what| !during.contains_key(what));
    loop {
        let elapsed = begun.elapsed();
        let goes_on = elapsed < TIME || killed < 100 || (is_missed(&killed_during) && elapsed < LONGEST);
        if !kills.map_or(goes_on, |kills| killed < kills) {
            break;
        }
        // On a slow computer writers come further the later they are killed.
        let window = Duration::from_millis(16) * 2_u32.pow((elapsed.as_secs() / TIME.as_secs()).min(5) as u32);
        let mode = MODES[(killed / 2 % MODES.len() as u64) as usize];
        let writers =
            ["a", "b"].map(|side| helper(&[mode, path, &format!("{side}{killed}"), exports.to_str().unwrap()]));
        let mut done = BTreeSet::new();
        for writer in writers {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            sleep(Duration::from_micros(random % window.as_micros() as u64));
            let (must, _, during) = kill(writer);
            *killed_during.entry(during).or_default() += 1;
            published += must.len();
            done.extend(must);
            killed += 1;
        }
        if killed % 6 == 0 {
            // As the daemon would, beside nobody or somebody.
            store.collect().unwrap();
        }
        let here: BTreeSet<String> = store.checkpoints().unwrap().into_iter().collect();
        assert!(done.is_subset(&here), "lost: {:?}", done.difference(&here).collect::<Vec<_>>());
        // With an eye that has seen nothing yet.
        let fresh = Store::open(directory.path()).unwrap();
        for name in here.iter().filter(|name| *name != "kept") {
            assert_memory(&fresh, name, CHURN_PAGES, &churned(name));
            store.remove(name).unwrap();
        }
    }
    assert_memory(&store, "kept", 50, &numbered(50, 7));
    assert_eq!(store.verify().unwrap().damage, []);
    store.collect().unwrap();
    assert_eq!(
        common::files(directory.path(), "writers"),
        Vec::<std::path::PathBuf>::new(),
        "dead writers left nothing"
    );
    assert!(published > 0, "writers came as far as to publish");
    println!("{killed} writers killed, who had {published} checkpoints; they were {killed_during:?}");
    for what in MIDDLES {
        assert!(killed_during.contains_key(what), "none was killed while {what}: {killed_during:?}");
    }
}

#[test]
fn a_full_disk_ends_the_write_and_leaves_what_was_there() {
    let directory = temporary();
    let mount = directory.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    // A mount of its own needs a namespace of its own, which root has and most others may have.
    let is_root = rustix::process::geteuid().is_root();
    let script = format!(
        r#"mount -t tmpfs -o size=3m tmpfs {mount} && cp -r "$1"/. {mount} && "$2" fill {mount} && cp -r {mount}/. "$1" && mount -o remount,ro {mount} && "$2" read {mount} kept"#
    );
    let store = Store::create(&directory.path().join("store")).unwrap();
    publish(&store, "kept", 50, &numbered(50, 7)).unwrap();
    let mut command = Command::new("unshare");
    command.args(if is_root { &["--mount"][..] } else { &["--mount", "--map-root-user"] });
    let output = command
        .args(["sh", "-c", &script, "sh"])
        .arg(directory.path().join("store"))
        .arg(env!("CARGO_BIN_EXE_store-test-writer"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let [failed, full, read_only] = said
        .lines()
        .rev()
        .take(3)
        .collect::<Vec<_>>()
        .try_into()
        .map(|mut last: [&str; 3]| {
            last.reverse();
            last
        })
        .unwrap();
    assert!(failed.starts_with("failed cannot ") && failed.contains("No space left on device"), "{said}");
    // What is stored can be read and exported, from a disk without one free byte and from one that cannot be written to.
    assert_eq!((full, read_only), ("read kept", "read kept"), "{said}");

    let store = Store::open(&directory.path().join("store")).unwrap();
    assert_memory(&store, "kept", 50, &numbered(50, 7));
    let done: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("done ")).collect();
    assert!(!done.is_empty(), "some fitted");
    let mut names = store.checkpoints().unwrap();
    names.retain(|name| name != "kept");
    assert_eq!(names, done);
    assert_eq!(store.verify().unwrap().damage, []);
    store.collect().unwrap();
    publish(&store, "after", 50, &numbered(50, 900)).unwrap();
}

#[test]
fn a_reader_in_another_process_keeps_what_it_reads_until_it_dies() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 7)).unwrap();
    let mut reader = helper(&["hold", directory.path().to_str().unwrap(), "one"]);
    let mut said = String::new();
    BufReader::new(reader.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "open one\n");
    store.remove("one").unwrap();
    let packs = |of: &Path| common::files(of, "packs").len();
    assert_eq!((store.collect().unwrap().packs, packs(directory.path())), (0, 1));
    reader.kill().unwrap();
    reader.wait().unwrap();
    let collected = store.collect().unwrap();
    assert_eq!((collected.packs, collected.manifests), (1, 1));
    assert_eq!(packs(directory.path()), 0);
}
