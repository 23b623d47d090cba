//! Real programs of Debian in guests with a network: nginx, PostgreSQL, Node.js and git; and Chromium and wrk on the
//! host.
//!
//! One VM is booted, in which the servers start. Every test forks it and leaves it as it is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod browser; // that looks at a VM while it is forked
mod database; // PostgreSQL, in a VM and outside
mod git; // from outside
mod load; // many requests at once
mod socket; // a WebSocket across a fork
mod twins; // twenty at once

use pando_tests::world::WORLD;
use pando_tests::{TestDaemon, TestVm, prepared, progress, setting, wait_for};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// An emulated host is slow.
const LIMIT: Duration = Duration::from_secs(120);
/// Where nginx listens in a guest.
const NGINX: u16 = 8080;
/// Where Node.js does.
const NODE: u16 = 8081;
/// Where PostgreSQL does, in a guest and in the world.
const POSTGRES: u16 = 5432;

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(WORLD.into(), port)
}

/// Tells how long `work` took.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    progress(format_args!("{what}: {:.1} s", start.elapsed().as_secs_f32()));
    result
}

/// The VM that all tests fork.
fn base() -> &'static TestVm<'static> {
    static BASE: LazyLock<TestVm<'static>> = LazyLock::new(|| {
        let published = format!("0:{NGINX}");
        let options = ["--memory", "512M", "--net", "nat", "-p", &published];
        let boot = || TestDaemon::shared().boot_from(&prepared(setting::DEBIAN), "base", &options);
        let base = timed("boot", boot);
        timed("servers", || start_servers(&base));
        base
    });
    &BASE
}

fn start_servers(base: &TestVm<'_>) {
    base.write("/srv/nginx.conf", include_str!("../../debian/nginx.conf"));
    base.write("/srv/server.js", include_str!("../../debian/server.js"));
    base.write("/srv/page.html", include_str!("../../debian/page.html"));
    base.write("/srv/said", ""); // By nobody yet.
    base.sh("nginx -c /srv/nginx.conf");
    base.start("node /srv/server.js");
    base.sh("su postgres -c 'pg_ctl -D /data/cluster -l /tmp/postgres.log -t 120 -w start'");
    wait_for("all listen", LIMIT, || {
        let listening = base.sh("netstat -ltn");
        [NGINX, NODE, POSTGRES].iter().all(|port| listening.contains(&format!("127.0.0.1:{port} ")))
    });
}

/// The body of an answer that went well; Node.js may send it in chunks.
#[track_caller]
fn assert_says(answer: &str, words: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let is_it = if head.contains("chunked") { body.contains(&format!("\r\n{words}\r\n")) } else { body == words };
    assert!(head.starts_with("HTTP/1.1 200 ") && is_it, "{answer}");
}
