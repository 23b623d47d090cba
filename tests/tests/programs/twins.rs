//! Twenty forks of one VM.

use super::{LIMIT, NGINX, assert_says, at, base, timed};
use pando_tests::web::Page;
use pando_tests::world::{HOST, WORLD, World, ip};
use pando_tests::{TestVm, progress, wait_for};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// How many forks there are at once.
const TWINS: usize = 20;
/// How many of them begin at one instant. Each must answer within half a minute, and an emulated host has one CPU: of
/// twenty at one instant seventeen did not, with a `pando` that was not optimised.
const AT_ONE_INSTANT: &str = "5";
/// Where echo listens in the world.
const ECHO: u16 = 7007;

/// Does something with each of them at once.
fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let barrier = Barrier::new(all.len());
    let one = |it| {
        barrier.wait();
        work(it)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|it| scope.spawn(|| one(it))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// How many links of the host lead to VMs.
fn links() -> usize {
    ip(&["-o", "link"]).lines().filter(|line| line.contains("pando")).count()
}

/// What a page is, asked for again where the guest's agent was too slow for the daemon: twenty guests share one CPU.
fn answer(page: &Page) -> String {
    let start = Instant::now();
    loop {
        let answer = page.get("/who");
        if !answer.starts_with("HTTP/1.1 504 ") || start.elapsed() > LIMIT {
            return answer;
        }
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn twenty_forks_serve_under_twenty_urls_and_talk_to_the_outside_at_once_unheard_by_each_other() {
    let world = World::make();
    let there = world.echo(at(ECHO));
    let base = base();
    let links_before = links();
    let mut twins = Vec::new();
    while twins.len() < TWINS {
        let (report, children) = timed("fork", || base.fork_with(&["--count", AT_ONE_INSTANT]));
        progress(format_args!("paused for {} µs", report.pause_us));
        twins.extend(children);
    }

    let all: Vec<_> = twins.iter().chain([base]).collect();
    let pages = timed("ports", || at_once(&all, |vm| Page::open(vm, NGINX)));
    let urls: BTreeSet<_> = pages.iter().map(|page| &page.host).collect();
    assert_eq!(urls.len(), TWINS + 1);
    let answers = timed("twenty-one pages", || at_once(&pages, answer));
    for (vm, answer) in all.iter().zip(&answers) {
        assert_says(answer, vm.name());
    }

    let talk = format!(
        "twin=\"twin-$(cat /run/pando/name);\"; while :; do echo \"$twin\"; sleep 1; done | nc {WORLD} {ECHO} > /srv/heard"
    );
    timed("talk", || {
        at_once(&twins, |twin| twin.start(&format!("sh -c '{talk}'")));
        wait_for("all talk at once", LIMIT, || {
            let heard = there.heard();
            heard.len() == TWINS && heard.iter().all(|one| one.lines >= 3 && !one.has_ended)
        });
    });
    let heard = there.heard();
    let sources: BTreeSet<_> = heard.iter().map(|one| one.from).collect();
    assert_eq!(sources.len(), TWINS, "each has a port of its own: {sources:?}");
    assert!(sources.iter().all(|from| from.ip() == HOST), "{sources:?}");
    let own = |twin: &TestVm<'_>| format!("twin-{};", twin.name());
    let expected: BTreeSet<_> = twins.iter().map(own).collect();
    assert_eq!(heard.iter().map(|one| one.first.clone()).collect::<BTreeSet<_>>(), expected);
    for twin in &twins {
        let seen = twin.sh("sort -u /srv/packets; tail -n +2 /srv/heard | sort -u");
        assert_eq!(seen, format!("{0}\n{0}", own(twin)), "in packets, and in answers");
    }
    assert_eq!(base.read("/srv/packets"), "", "the parent, which was silent, sees nothing of it");

    timed("end", || drop(twins));
    wait_for("their links are gone", LIMIT, || links() <= links_before);
    assert_says(&pages[TWINS].get("/who"), "base");
}
