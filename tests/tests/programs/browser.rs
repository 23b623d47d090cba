//! A browser that looks at a VM while that is forked, and at its child.

use super::{LIMIT, NODE, base, timed};
use pando_tests::web::Page;
use pando_tests::{TestVm, progress, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Until a browser in an emulated host shows its first page.
const SHOWN_LIMIT: Duration = Duration::from_secs(600);
/// How many texts come back before the fork, and after it.
const TEXTS: usize = 20;

/// Chromium without a window. It ends with this.
struct Browser {
    process: Child,
    /// Where it is told to open further pages.
    port: u16,
}

impl Browser {
    /// Shows `url`; what it keeps is in `folder`.
    fn show(url: &str, folder: &Path) -> Self {
        // The first three are about what is tested. Without the next seven it would ask servers of its makers for this and that.
        let options = [
            "--headless",
            "--no-sandbox",
            "--remote-debugging-port=0",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // The parent's page is hidden by the child's, and is to talk on as one that is seen.
            "--disable-background-timer-throttling",
            "--disable-backgrounding-occluded-windows",
            "--disable-renderer-backgrounding",
        ];
        let process = Command::new("chromium")
            .args(options)
            .arg(format!("--user-data-dir={}", folder.display()))
            .arg(url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium, which scripts/setup installs");
        let mut browser = Self { process, port: 0 };
        let file = folder.join("DevToolsActivePort");
        let port = || fs::read_to_string(&file).ok()?.lines().next()?.parse().ok();
        wait_for("the browser has begun", SHOWN_LIMIT, || port().is_some());
        browser.port = port().unwrap();
        browser
    }

    /// Shows `url`, too.
    fn show_too(&self, url: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(SHOWN_LIMIT)).unwrap();
        write!(stream, "PUT /json/new?{url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the page says by its WebSocket, as the server in `vm` has written it down.
struct Said {
    /// The connection by which it was said.
    connection: String,
    number: usize,
    /// The longest time in milliseconds until a text came back, so far.
    longest: u64,
}

fn said(vm: &TestVm<'_>, by: &Page) -> Vec<Said> {
    let host = by.host.split(':').next().unwrap();
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let ["page", from, number, longest] = words[1..] else { return None };
        let (number, longest) = (number.parse().unwrap(), longest.parse().unwrap());
        (from == host).then(|| Said { connection: words[0].to_owned(), number, longest })
    };
    vm.read("/srv/said").lines().filter_map(line).collect()
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_browser_holds_its_web_socket_to_the_parent_across_a_fork_and_opens_the_childs_page() {
    let parent = base().fork();
    let page = Page::open(&parent, NODE);
    let folder = tempfile::tempdir().unwrap();
    let browser = timed("the page is shown", || {
        let browser = Browser::show(&page.url("/page"), folder.path());
        wait_for("the page talks", SHOWN_LIMIT, || said(&parent, &page).len() > TEXTS);
        browser
    });

    let child = timed("fork", || parent.fork());
    let before = said(&parent, &page).len();
    let own = Page::open(&child, NODE);
    timed("the child's page is shown", || {
        browser.show_too(&own.url("/page"));
        wait_for("the child's page talks", SHOWN_LIMIT, || said(&child, &own).len() > TEXTS);
    });
    let mut after = 0;
    timed("the parent's page goes on", || {
        wait_for("it says more", LIMIT, || {
            let count = said(&parent, &page).len() - before;
            if count != after {
                progress(format_args!("{count} texts since the fork")); // Of one that stops, when it did is of use.
            }
            after = count;
            after > TEXTS
        });
    });

    let all = said(&parent, &page);
    for (index, one) in all.iter().enumerate() {
        assert_eq!((one.number, &one.connection), (index, &all[0].connection), "no text is lost, and none said again");
    }
    let longest = all.last().unwrap().longest;
    progress(format_args!("{} texts by one connection came back, each within {longest} ms", all.len()));
    assert!(said(&parent, &own).is_empty(), "what is said to the child does not reach the parent");
}
