//! A daemon, or who asks it, is killed at any moment of a push and of a collection: what a bucket or a store offers is
//! whole, and what was said to be done is done.
//!
//! The daemon boots no VM here: its checkpoints were made of toy guests, and imported.

#[allow(dead_code, reason = "the store's tests use more of it")]
#[path = "../../../../store/tests/bucket/server.rs"]
mod server;

use super::{boot, goes_on, kill, kills};
use crate::fixture::ahead_of_export;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::Daemon;
use pando_store::{Bucket, BucketError, Store};
use pando_wire::api::Image;
use serde_json::{Value, json};
use server::Server;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How many are killed when nothing else is said, one of [`VICTIMS`] in turn.
const FEW_KILLS: u32 = 9;
/// With so many of each, some come in the middle.
const MANY: u32 = 20;
const IDS: [&str; 2] = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"];

/// Who dies, and at what.
#[derive(Debug, Clone, Copy)]
enum Victim {
    DaemonAtPush,
    ClientAtPush,
    DaemonAtCollection,
}

const VICTIMS: [Victim; 3] = [Victim::DaemonAtPush, Victim::ClientAtPush, Victim::DaemonAtCollection];

/// What had become of it when somebody was killed.
#[derive(Debug, Default)]
struct Count {
    kills: u32,
    /// It was said to be done.
    done: u32,
    /// It was done, or a part of it that is seen: what is removed before what that leaves is collected.
    untold: u32,
    /// Some of it was in the bucket, and was not to be seen.
    partly: u32,
    /// Nothing was.
    nothing: u32,
}

#[test]
fn what_was_pushed_or_kept_is_whole_whoever_is_killed_at_a_push_or_a_collection() {
    if !needs_kvm() {
        return;
    }
    let (server, mut keeper) = (Server::start(), Keeper::start());
    let exports = keeper.exports();
    keeper.import(&exports[0]);
    let start = Instant::now();
    assert!(Push::of(&keeper, &server, "first").client.wait_with_output().unwrap().status.success());
    let pushed = start.elapsed();
    keeper.import(&exports[1]);
    let start = Instant::now();
    assert!(keeper.collecting().wait().unwrap().success());
    let collected = start.elapsed();
    let each = kills(FEW_KILLS).div_ceil(VICTIMS.len() as u32);
    let mut counts: [Count; VICTIMS.len()] = Default::default();
    for turn in 0..each * VICTIMS.len() as u32 {
        let (round, victim) = (turn / VICTIMS.len() as u32, turn as usize % VICTIMS.len());
        let (count, victim) = (&mut counts[victim], VICTIMS[victim]);
        let after = |took: Duration| took * 5 / 4 * round / each;
        match victim {
            Victim::DaemonAtCollection => keeper.collect_and_kill(&exports[1], after(collected), count),
            at_push => {
                let push = Push::of(&keeper, &server, &format!("{victim:?}{round}"));
                push.kill(&mut keeper, at_push, after(pushed), count);
            }
        }
        keeper.is_whole();
    }
    VICTIMS.iter().zip(&counts).for_each(|(victim, count)| println!("{victim:?}: {count:?}"));
    assert!(counts.iter().all(|count| count.done < count.kills), "kills came before the end: {counts:?}");
    let is_spread = counts[0].partly > 0 && counts[1].partly > 0 && counts[2].untold > 0;
    assert!(is_spread || each < MANY, "kills came in the middle of it: {counts:?}");
}

/// A checkpoint on its way to a bucket of its own.
struct Push {
    bucket: Bucket,
    url: String,
    endpoint: String,
    client: Child,
}

impl Push {
    fn of(keeper: &Keeper, server: &Server, prefix: &str) -> Self {
        let spec = server.spec(prefix);
        let (url, endpoint) = (spec.to_string(), spec.endpoint.clone().unwrap());
        let client = keeper.pando(&push(&url, &endpoint)).spawn().unwrap();
        Self { bucket: Bucket::new(&spec).unwrap(), url, endpoint, client }
    }

    /// Kills somebody so long after it has begun, and looks at what the bucket offers. Then it is pushed again, and is
    /// whole.
    fn kill(mut self, keeper: &mut Keeper, victim: Victim, after: Duration, count: &mut Count) {
        thread::sleep(after);
        match victim {
            Victim::ClientAtPush => kill(self.client.id()),
            _ => keeper.daemon.kill().unwrap(),
        }
        let is_said = self.client.wait().unwrap().success();
        let is_offered = self.is_offered();
        assert!(is_offered || !is_said, "it was said to be pushed, and is not offered");
        keeper.daemon.ensure().unwrap();
        let told = keeper.ok(&push(&self.url, &self.endpoint));
        // As in: 2 KiB sent in 3 files, 4 were there.
        let is_empty = told.trim_end().ends_with(", 0 were there");
        count.kills += 1;
        count.done += u32::from(is_said);
        count.untold += u32::from(is_offered && !is_said);
        count.partly += u32::from(!is_offered && !is_empty);
        count.nothing += u32::from(!is_offered && is_empty);
        assert!(self.is_offered(), "pushed again, it is there");
    }

    /// Whether the bucket offers the checkpoint, and if so, it is a VM that goes on.
    fn is_offered(&self) -> bool {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (described, named) = runtime.block_on(async {
            let described = or_none(self.bucket.described("a").await);
            let named = or_none(self.bucket.checkpoints().await);
            let store = Store::create(dir.path()).unwrap();
            for name in &named {
                self.bucket.pull(&store, name).await.unwrap();
            }
            assert_eq!(store.verify().unwrap().damage, []);
            (described, named)
        });
        assert!(described.iter().all(|id| named.contains(id)), "what is described is there: {described:?} {named:?}");
        named.iter().for_each(|name| goes_on(dir.path(), name));
        !described.is_empty()
    }
}

/// What a bucket has, which has nothing at all before a push has got so far.
fn or_none(names: Result<Vec<String>, BucketError>) -> Vec<String> {
    match names {
        Err(BucketError::NoStore(_)) => Vec::new(),
        names => names.unwrap(),
    }
}

fn push(url: &str, endpoint: &str) -> [String; 6] {
    ["checkpoint", "push", "a", url, "--endpoint", endpoint].map(str::to_owned)
}

/// A daemon with an image of nothing.
struct Keeper {
    daemon: Daemon,
    image: String,
    /// Where checkpoints are made, and the exports of them.
    folder: TempDir,
}

impl Keeper {
    fn start() -> Self {
        let (daemon, folder) = (Daemon::start(PANDO.as_ref(), &[]).unwrap(), tempfile::tempdir().unwrap());
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir("somewhere", folder.path()).unwrap();
        let image: Image = daemon.send("POST", "/images", &archive.into_inner().unwrap()).unwrap();
        Self { daemon, image: image.digest, folder }
    }

    fn store(&self) -> PathBuf {
        self.daemon.state().join("store")
    }

    /// Two checkpoints of a toy guest, `a` and `b`, as files.
    fn exports(&self) -> [PathBuf; 2] {
        let vm = boot();
        let dir = self.folder.path().join("made");
        [("a", IDS[0]), ("b", IDS[1])].map(|(name, id)| {
            vm.console_of(vm.console().unwrap().len() + 3, LIMIT).unwrap();
            vm.seed().unwrap().save(PANDO.as_ref(), &dir, id).unwrap();
            let path = self.folder.path().join(name);
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(&description(name, id, &self.image)).unwrap();
            Store::open(&dir).unwrap().export(&[id], file).unwrap();
            path
        })
    }

    fn import(&self, export: &Path) {
        self.ok(&["checkpoint", "import", &export.display().to_string()]);
    }

    /// Who has it remove `b` and collect what that leaves.
    fn collecting(&self) -> Child {
        let asking = self.pando::<&str>(&[]);
        let mut client = Command::new("sh");
        client.args(["-c", r#""$0" checkpoint rm b && "$0" checkpoint gc"#]).arg(asking.get_program());
        client.envs(asking.get_envs().filter_map(|(name, value)| Some((name, value?))));
        client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Is killed so long after it began to collect. Then `b` is there in full or not at all, and can be collected.
    fn collect_and_kill(&mut self, export: &Path, after: Duration, count: &mut Count) {
        self.import(export);
        let mut client = self.collecting();
        thread::sleep(after);
        self.daemon.kill().unwrap();
        let is_said = client.wait().unwrap().success();
        self.is_whole();
        let is_there = self.ok(&["checkpoint", "ls", "-q"]).lines().any(|name| name == "b");
        assert!(!is_there || !is_said, "it was said to be removed, and is there");
        count.kills += 1;
        count.done += u32::from(is_said);
        count.untold += u32::from(!is_there && !is_said);
        count.nothing += u32::from(is_there);
        if is_there {
            self.ok(&["checkpoint", "rm", "b"]);
        }
        self.ok(&["checkpoint", "gc"]);
    }

    /// What it says is stored is, and goes on; nothing else is to be seen.
    fn is_whole(&mut self) {
        self.daemon.ensure().unwrap();
        self.ok(&["checkpoint", "verify"]);
        let all: Vec<Value> = serde_json::from_str(&self.ok(&["checkpoint", "ls", "-o", "json"])).unwrap();
        assert!(all.iter().any(|one| one["name"] == "a"), "what was stored is kept: {all:?}");
        for one in all {
            assert_eq!(one["state"], "stored", "{one}");
            goes_on(&self.store(), one["id"].as_str().unwrap());
        }
    }

    fn ok<A: AsRef<str>>(&self, arguments: &[A]) -> String {
        let output = self.pando(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}; the daemon's log: {}", self.daemon.log().unwrap());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The program, with the keys of the bucket.
    fn pando<A: AsRef<str>>(&self, arguments: &[A]) -> Command {
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.daemon.command(&arguments);
        command.env("AWS_ACCESS_KEY_ID", "somebody").env("AWS_SECRET_ACCESS_KEY", "something");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// What a daemon would know of the checkpoint.
fn description(name: &str, id: &str, image: &str) -> Vec<u8> {
    ahead_of_export(&json!({
        "id": id, "name": name, "vm": IDS[0], "vm_name": "toy", "generation": 1, "image": image, "cpus": 1,
        "memory_bytes": MEMORY, "command": [], "env": {}, "cwd": null, "user": null, "kernel": null, "created_ms": 1,
    }))
}
