//! Checkpoints in a bucket of a real S3 server: `moto_server`, on loopback.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

#[path = "../common/mod.rs"]
mod common;
mod proxy; // a network that is slow, broken or full
mod server; // the S3 server

use common::{Pages, assert_memory, files, numbered, publish, temporary};
use pando_store::{Bucket, BucketError, OpenCheckpoint, PAGE_BYTES, Store};
use proxy::{Mood, Proxy};
use server::Server;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Pages that do not compress: 3 packs of 2 MiB and a bit.
const PAGES: u64 = 1700;

fn pages(first: u64) -> Pages {
    (0..PAGES).map(|at| (at, 2 * (first + at) + 1)).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future)
}

/// An error with its causes.
fn told(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join("\n  because: ")
}

#[test]
fn a_checkpoint_comes_back_equal_and_what_is_there_is_not_sent_again() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("round/trip")).unwrap();
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let mut changed = pages(0);
    changed.insert(7, 999_999);
    publish(&store, "two", PAGES, &changed).unwrap();
    let layer = store.checkpoint("two").unwrap().memory.unwrap();
    store.note_working_set(layer, &[3..9, 20..21]).unwrap();
    run(async {
        let first = bucket.push(&store, "one").await.unwrap();
        assert_eq!((first.sent, first.there), (5, 0), "four packs and a manifest: {first:?}");
        let again = bucket.push(&store, "one").await.unwrap();
        assert_eq!((again.sent, again.there, again.bytes), (0, 5, 0));
        let second = bucket.push(&store, "two").await.unwrap();
        assert!(second.sent == 2 && second.there == 4, "one small pack and a manifest: {second:?}");
        assert_eq!(bucket.checkpoints().await.unwrap(), ["one", "two"]);

        let other = Store::create(there.path()).unwrap();
        assert_eq!(bucket.pull(&other, "two").await.unwrap().here, 0);
        assert_memory(&other, "two", PAGES, &changed);
        assert_eq!(other.working_set(layer), Some(vec![3..9, 20..21]));
        assert_eq!(other.checkpoint("two").unwrap(), store.checkpoint("two").unwrap());
        let rest = bucket.pull(&other, "one").await.unwrap();
        assert_eq!((rest.fetched, rest.here), (1, 4), "only the manifest: {rest:?}");
        assert_memory(&other, "one", PAGES, &pages(0));
        assert_eq!(other.verify().unwrap().damage, []);

        let absent = bucket.pull(&other, "three").await.unwrap_err();
        assert!(
            absent.to_string().starts_with("no checkpoint in s3://") && absent.to_string().ends_with("is called three")
        );
        bucket.remove("one").await.unwrap();
        assert_eq!(bucket.checkpoints().await.unwrap(), ["two"]);
        assert!(matches!(bucket.remove("one").await, Err(BucketError::Absent { .. })));
    });
}

#[test]
fn what_is_known_of_a_checkpoint_is_found_by_name_and_goes_with_it() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("described")).unwrap();
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    run(async {
        bucket.push(&store, "one").await.unwrap();
        bucket.describe("warm", "one", b"it is warm".into()).await.unwrap();
        bucket.describe("warm", "zero", b"it is not".into()).await.unwrap();
        bucket.describe("warm.2", "one", b"also".into()).await.unwrap();
        assert_eq!(bucket.described("warm").await.unwrap(), ["one", "zero"]);
        assert_eq!(bucket.description("warm", "one").await.unwrap().unwrap(), b"it is warm");
        assert_eq!(bucket.description("warm", "two").await.unwrap(), None);
        assert_eq!(bucket.names_of("one").await.unwrap(), ["warm", "warm.2"]);
        bucket.description("../warm", "one").await.unwrap_err();
        bucket.collect().await.unwrap();
        bucket.remove("one").await.unwrap();
        assert_eq!(bucket.described("warm").await.unwrap(), ["zero"]);
        assert_eq!(bucket.described("warm.2").await.unwrap(), [""; 0]);
    });
}

#[test]
fn two_stores_do_not_overwrite_each_others_checkpoints() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("shared")).unwrap();
    let (one, other) = (temporary(), temporary());
    let one = Store::create(one.path()).unwrap();
    publish(&one, "same", 50, &numbered(50, 1)).unwrap();
    let other_store = Store::create(other.path()).unwrap();
    publish(&other_store, "same", 50, &numbered(50, 500)).unwrap();
    run(async {
        bucket.push(&one, "same").await.unwrap();
        let refused = bucket.push(&other_store, "same").await.unwrap_err();
        assert!(refused.to_string().starts_with("there is another checkpoint called same in s3://"), "{refused}");
        let refused = bucket.pull(&other_store, "same").await.unwrap_err();
        assert_eq!(refused.to_string(), "there is another checkpoint called same already");
    });
    assert_memory(&other_store, "same", 50, &numbered(50, 500));
}

#[test]
fn wrong_credentials_are_refused_in_one_sentence() {
    let server = Server::start();
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    server.ask_for_credentials();
    let spec = server.spec("secret");
    let bucket = Bucket::new(&spec).unwrap();
    let begun = Instant::now();
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert!(matches!(refused, BucketError::Refused { .. }), "{}", told(&refused));
    assert_eq!(refused.to_string(), format!("{spec} refuses these credentials"));
    assert!(told(&refused).contains("403") && !told(&refused).contains("somebody"), "{}", told(&refused));
    assert_eq!(format!("{bucket:?}"), format!("Bucket({spec})"));
    assert!(begun.elapsed() < Duration::from_secs(5), "there is no point in trying that again");
    assert_memory(&store, "one", 50, &numbered(50, 1));
}

#[test]
fn a_bucket_that_is_not_there_is_named() {
    let server = Server::start();
    let mut spec = server.spec("x");
    spec.bucket = "nowhere".to_owned();
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    let bucket = Bucket::new(&spec).unwrap();
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert_eq!(refused.to_string(), "there is no bucket s3://nowhere/x", "{}", told(&refused));
}

#[test]
fn a_server_that_dies_ends_the_push_and_one_that_is_back_takes_it() {
    let mut server = Server::start();
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let spec = server.spec("dies");
    let bucket = Bucket::new(&spec).unwrap();
    server.kill();
    let begun = Instant::now();
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert!(refused.to_string().starts_with("cannot read store in s3://"), "{}", told(&refused));
    assert!(begun.elapsed() < 3 * spec.patience, "{:?}", begun.elapsed());
    assert_memory(&store, "one", PAGES, &pages(0));
    server.restart();
    assert_eq!(run(bucket.push(&store, "one")).unwrap().sent, 5);
    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    run(bucket.pull(&other, "one")).unwrap();
    assert_memory(&other, "one", PAGES, &pages(0));
}

#[test]
fn a_push_goes_on_where_it_was_cut_off_and_until_then_nothing_is_offered() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let bucket = Bucket::new(&proxy.spec("cut")).unwrap();
    // Enough for some packs and not for all.
    proxy.mood(Mood::DieAfter(5 << 20));
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert!(matches!(refused, BucketError::Unreachable { .. }), "{}", told(&refused));
    proxy.mood(Mood::Well);
    assert_eq!(run(bucket.checkpoints()).unwrap(), [""; 0]);
    let rest = run(bucket.push(&store, "one")).unwrap();
    assert!(rest.there > 0 && rest.sent > 0 && rest.there + rest.sent == 5, "{rest:?}");
    assert_eq!(run(bucket.checkpoints()).unwrap(), ["one"]);
}

#[test]
fn a_pull_that_is_cut_off_leaves_nothing_and_a_short_outage_is_sat_out() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let bucket = Bucket::new(&proxy.spec("pull")).unwrap();
    run(bucket.push(&store, "one")).unwrap();
    let other = Store::create(there.path()).unwrap();
    proxy.mood(Mood::DieAfter(3 << 20));
    run(bucket.pull(&other, "one")).unwrap_err();
    assert_eq!(other.checkpoints().unwrap(), [""; 0]);
    assert_eq!(other.verify().unwrap().damage, []);
    // Down now, and back before patience ends.
    let back = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            proxy.mood(Mood::Well);
        });
        run(bucket.pull(&other, "one"))
    });
    back.unwrap();
    assert_memory(&other, "one", PAGES, &pages(0));
}

#[test]
fn a_slow_server_is_waited_for_and_a_stalled_one_is_not() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "slow", 100, &pages(0).into_iter().take(100).collect()).unwrap();
    let spec = proxy.spec("slow");
    let bucket = Bucket::new(&spec).unwrap();
    proxy.mood(Mood::Slow);
    assert_eq!(run(bucket.push(&store, "slow")).unwrap().sent, 2);
    proxy.mood(Mood::Stalled);
    let begun = Instant::now();
    let refused = run(bucket.pull(&store, "slow")).unwrap_err();
    assert!(matches!(refused, BucketError::Unreachable { .. }), "{}", told(&refused));
    assert!(begun.elapsed() < spec.patience + 2 * spec.timeout + Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_full_server_ends_the_push() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    let bucket = Bucket::new(&proxy.spec("full")).unwrap();
    proxy.mood(Mood::Full);
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert!(told(&refused).contains("507"), "{}", told(&refused));
    assert!(matches!(refused, BucketError::Unreachable { action: "write", .. }));
    proxy.mood(Mood::Well);
    run(bucket.push(&store, "one")).unwrap();
}

#[test]
fn an_object_that_was_changed_is_refused_by_name() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("changed")).unwrap();
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    run(bucket.push(&store, "one")).unwrap();
    let pack = files(here.path(), "packs").remove(0);
    let name = pack.file_name().unwrap().to_str().unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    server.put(&format!("changed/packs/{name}"), &bytes);
    let other = Store::create(there.path()).unwrap();
    let refused = run(bucket.pull(&other, "one")).unwrap_err();
    assert_eq!(refused.to_string(), format!("packs/{name} is damaged"));
    assert_eq!(other.checkpoints().unwrap(), [""; 0]);
    server.put("changed/store", &{
        let mut mark = fs::read(here.path().join("store")).unwrap();
        mark[8] = 2;
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&mark[..24]);
        mark[24..].copy_from_slice(&digest.finalize().to_le_bytes());
        mark
    });
    let refused = run(bucket.pull(&other, "one")).unwrap_err().to_string();
    assert!(
        refused.ends_with("is of store format 2, and this build reads up to 1: a newer pando is needed"),
        "{refused}"
    );
}

#[test]
fn a_pull_that_is_killed_leaves_all_of_a_checkpoint_or_nothing() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("killed")).unwrap();
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    run(bucket.push(&store, "one")).unwrap();
    let other = Store::create(there.path()).unwrap();
    let (mut random, mut during, mut done) = (0x2545_f491_4f6c_dd1d_u64, 0, 0);
    for _ in 0..60 {
        let program = env!("CARGO_BIN_EXE_store-test-writer");
        let args = ["pull", there.path().to_str().unwrap(), "one", &server.spec("killed").endpoint.unwrap(), "killed"];
        let mut puller = Command::new(program).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(puller.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "now pulling\n");
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 150_000));
        puller.kill().unwrap();
        puller.wait().unwrap();
        line.clear();
        said.read_line(&mut line).unwrap();
        let was_reported = line == "done one\n";
        *(if was_reported { &mut done } else { &mut during }) += 1;
        let listed = other.checkpoints().unwrap();
        assert!(listed == ["one"] || !was_reported, "it was reported done, and is lost");
        if listed == ["one"] {
            assert_memory(&Store::open(there.path()).unwrap(), "one", PAGES, &pages(0));
            other.remove("one").unwrap();
        }
        assert_eq!(other.verify().unwrap().damage, []);
        other.collect().unwrap();
    }
    println!("{during} killed while they pulled, {done} after that");
    assert!(during > 10, "only {during} of 60 were killed while they pulled");
}

#[test]
fn what_no_checkpoint_of_a_bucket_needs_is_deleted_and_nothing_else() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("swept")).unwrap();
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", 500, &numbered(500, 1)).unwrap();
    publish(&store, "two", 500, &numbered(500, 251)).unwrap();
    run(async {
        bucket.push(&store, "one").await.unwrap();
        let two = bucket.push(&store, "two").await.unwrap();
        assert_eq!(bucket.collect().await.unwrap(), Default::default(), "everything is needed");
        bucket.remove("two").await.unwrap();
        let swept = bucket.collect().await.unwrap();
        assert_eq!((swept.objects, swept.bytes), (two.sent, two.bytes));
        let other = Store::create(there.path()).unwrap();
        bucket.pull(&other, "one").await.unwrap();
        assert_memory(&other, "one", 500, &numbered(500, 1));
        server.put("swept/checkpoints/bad", b"nothing");
        bucket.collect().await.unwrap_err();
        bucket.push(&store, "two").await.unwrap();
    });
}

/// Pages of an attached checkpoint, read without an async runtime around.
fn assert_attached(open: &OpenCheckpoint, pages: &Pages) {
    let memory = open.memory().unwrap().unwrap();
    let mut bytes = [0; PAGE_BYTES];
    for (at, number) in pages {
        memory.read_page(*at, &mut bytes).unwrap_or_else(|error| panic!("page {at}: {}", told(&error)));
        assert!(bytes == common::page(*number), "page {at}");
    }
}

fn attached(proxy: &Proxy, prefix: &str, cache_bytes: u64) -> (tempfile::TempDir, Store, OpenCheckpoint) {
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let bucket = Bucket::new(&proxy.spec(prefix)).unwrap();
    run(bucket.push(&store, "one")).unwrap();
    let other = Store::create(there.path()).unwrap();
    let open = other.attach(&bucket, "one", cache_bytes).unwrap();
    (there, other, open)
}

#[test]
fn a_checkpoint_of_a_bucket_is_read_a_pack_at_a_time() {
    let server = Server::start();
    let (there, other, open) = attached(&Proxy::before(&server), "lazy", 1 << 30);
    let packs = || files(there.path(), "packs").len();
    assert_eq!(packs(), 0, "nothing is fetched before it is wanted");
    let memory = open.memory().unwrap().unwrap();
    let lie_in: BTreeSet<_> = (0..PAGES).map(|at| memory.locate(at).unwrap().unwrap().pack).collect();
    assert_eq!(lie_in.len(), 4, "where it lies is known");
    let some: Pages = pages(0).into_iter().take(4).collect();
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| assert_attached(&open, &some))));
    });
    assert_eq!(packs(), 1);
    assert_attached(&open, &pages(0));
    assert_eq!((packs(), other.checkpoints().unwrap()), (4, vec![]));
    other.collect().unwrap();
    assert_eq!(packs(), 4, "they stay while it is attached");
    drop((open, memory));
    other.collect().unwrap();
    assert_eq!(packs(), 0);
}

#[test]
fn what_an_attached_checkpoint_keeps_here_is_bounded_and_comes_again() {
    let server = Server::start();
    let (there, _, open) = attached(&Proxy::before(&server), "bounded", 5 << 20);
    for _ in 0..2 {
        // Without what the handle has in memory.
        assert_attached(&open, &pages(0));
        Store::open(there.path()).unwrap().collect().unwrap();
        let bytes: u64 = files(there.path(), "packs").iter().map(|pack| fs::metadata(pack).unwrap().len()).sum();
        assert!(0 < bytes && bytes <= 5 << 20, "{bytes}");
    }
}

#[test]
fn what_one_has_read_through_a_cache_the_next_one_does_not_fetch() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", PAGES, &pages(0)).unwrap();
    let layer = store.checkpoint("one").unwrap().memory.unwrap();
    store.note_working_set(layer, &[3..9, 20..21]).unwrap();
    let bucket = Bucket::new(&proxy.spec("cached")).unwrap();
    run(bucket.push(&store, "one")).unwrap();
    assert_eq!(run(bucket.disk_pages("one")).unwrap(), [0; 0]);

    let cache = Store::create(there.path()).unwrap();
    let open = cache.attach_as_cache(&bucket, "one", 1 << 30).unwrap();
    assert_eq!(cache.working_set(layer), Some(vec![3..9, 20..21]));
    cache.note_working_set(layer, &[3..20, 30..31]).unwrap();
    assert_attached(&open, &pages(0));
    drop(open);
    // Enough for the mark and the checkpoint, and for no manifest or pack.
    proxy.mood(Mood::DieAfter(8 << 10));
    let again = Store::open(there.path()).unwrap();
    let open = again.attach_as_cache(&bucket, "one", 1 << 30).unwrap();
    assert_attached(&open, &pages(0));
    assert_eq!(again.working_set(layer), Some(vec![3..20, 30..31]), "what was learned here is known better than there");
    // Whoever deletes it meanwhile has it fetched again.
    proxy.mood(Mood::Well);
    again.collect().unwrap();
    assert_eq!(files(there.path(), "packs").len(), 0);
    assert_attached(&Store::open(there.path()).unwrap().attach_as_cache(&bucket, "one", 1 << 30).unwrap(), &pages(0));
}

#[test]
fn a_cache_does_not_grow_beyond_its_bound_whoever_fills_it() {
    const BOUND: u64 = 5 << 20;
    let server = Server::start();
    let (here, there) = (temporary(), temporary());
    let store = Store::create(here.path()).unwrap();
    let bucket = Bucket::new(&server.spec("bound")).unwrap();
    let most = || files(there.path(), "packs").iter().map(|pack| fs::metadata(pack).unwrap().len()).sum::<u64>();
    for (name, first) in [("one", 0), ("two", PAGES), ("three", 2 * PAGES)] {
        publish(&store, name, PAGES, &pages(first)).unwrap();
        run(bucket.push(&store, name)).unwrap();
        let open = Store::create(there.path()).unwrap().attach_as_cache(&bucket, name, BOUND).unwrap();
        for (page, number) in pages(first) {
            assert_attached(&open, &Pages::from([(page, number)]));
            assert!(most() <= BOUND, "{} after page {page} of {name}", most());
        }
        assert!(most() > BOUND / 2, "it keeps what it may: {}", most());
    }
}

#[test]
fn a_source_that_dies_is_a_clear_error_and_one_that_is_slow_or_back_is_read() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let (_there, _store, open) = attached(&proxy, "dies", 1 << 30);
    let memory = open.memory().unwrap().unwrap();
    let mut bytes = [0; PAGE_BYTES];
    for mood in [Mood::DieAfter(0), Mood::DieAfter(100 << 10), Mood::Stalled] {
        proxy.mood(mood);
        let begun = Instant::now();
        let refused = memory.read_page(0, &mut bytes).unwrap_err();
        assert!(refused.to_string().starts_with("cannot fetch chunk "), "{}", told(&refused));
        assert!(told(&refused).contains("cannot read packs/"), "{}", told(&refused));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    proxy.mood(Mood::Slow);
    // The last pack is short.
    assert_attached(&open, &pages(0).into_iter().skip(PAGES as usize - 1).collect());
    proxy.mood(Mood::DieAfter(300 << 10));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            proxy.mood(Mood::Well);
        });
        assert_attached(&open, &pages(0));
    });
}

#[test]
fn what_is_damaged_here_is_not_sent_and_what_is_gone_there_is_sent_again() {
    let server = Server::start();
    let bucket = Bucket::new(&server.spec("poison")).unwrap();
    let here = temporary();
    let store = Store::create(here.path()).unwrap();
    publish(&store, "one", 50, &numbered(50, 1)).unwrap();
    let pack = files(here.path(), "packs").remove(0);
    let good = fs::read(&pack).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&pack, &bad).unwrap();
    let refused = run(bucket.push(&store, "one")).unwrap_err();
    assert_eq!(refused.to_string(), format!("{} cannot be used", pack.display()));
    fs::write(&pack, &good).unwrap();
    assert_eq!(run(bucket.push(&store, "one")).unwrap().sent, 2);
    server.delete(&format!("poison/packs/{}", pack.file_name().unwrap().to_str().unwrap()));
    let again = run(bucket.push(&store, "one")).unwrap();
    assert_eq!((again.sent, again.there), (1, 1));
}
