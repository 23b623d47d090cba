//! Twenty forks of one VM.

use super::{LIMIT, NGINX, assert_says, base, timed};
use pando_tests::web::Page;
use pando_tests::world::ip;
use pando_tests::{progress, wait_for};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// How many forks there are at once.
const TWINS: usize = 20;
/// How many of them begin at one instant: an emulated host has one CPU, and each has a minute.
const AT_ONE_INSTANT: &str = "5";

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

/// How many links there are when nothing is left of others: of the parent, and of eight networks that are kept ready.
const LINKS: usize = 1 + 8;

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
fn twenty_forks_serve_under_twenty_urls_at_once() {
    let base = base();
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

    timed("end", || drop(twins));
    wait_for("their links are gone", LIMIT, || links() <= LINKS);
    assert_says(&answer(&pages[TWINS]), "base");
}
