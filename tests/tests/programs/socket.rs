//! A WebSocket to a VM that is forked meanwhile.

use super::{NODE, assert_says, base, timed};
use pando_tests::progress;
use pando_tests::web::Page;
use std::thread;
use std::time::{Duration, Instant};

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_web_socket_to_the_parent_goes_on_through_a_fork_and_children_have_their_own() {
    let base = base();
    let page = Page::open(base, NODE);
    let mut socket = page.web_socket();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let talk = thread::spawn(move || {
        let mut gaps = Vec::new();
        while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            let start = Instant::now();
            let text = format!("text {}", gaps.len());
            socket.say(&text);
            assert_eq!(socket.hear(), text, "every text comes back, in order");
            gaps.push(start.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        gaps
    });
    thread::sleep(Duration::from_secs(3));
    let child = timed("fork", || base.fork());
    let own = Page::open(&child, NODE);
    assert_says(&own.get("/"), child.name());
    let mut other = own.web_socket();
    other.say("to the child");
    assert_eq!(other.hear(), "to the child");
    drop(stop);
    let mut gaps = talk.join().unwrap();
    gaps.sort();
    let (middle, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    progress(format_args!("{} texts came back, one after {middle:?}, at most after {longest:?}", gaps.len()));
    assert_says(&page.get("/"), "base");
}
