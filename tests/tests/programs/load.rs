//! Many requests at once, and what the daemon's proxy costs.

use super::{NGINX, base};
use pando_tests::progress;
use pando_tests::web::Page;
use std::process::Command;

/// How often each side has its turn.
const ROUNDS: usize = 2;

/// Requests a second that were answered of those to `url`, which all must be.
fn wrk(url: &str, headers: &[String]) -> f64 {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", "8", "--duration", "8s", "--timeout", "60s"]);
    for header in headers {
        wrk.args(["--header", header]);
    }
    let output = wrk.arg(url).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !said.contains("errors") && !said.contains("Non-2xx"), "{said}");
    let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).unwrap();
    rate.trim().parse().unwrap()
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn every_request_of_many_is_answered_directly_and_through_the_proxy() {
    let base = base();
    let direct = format!("http://{}/who", base.inspect().published[0].host());
    let page = Page::open(base, NGINX);
    let (_, port) = page.host.rsplit_once(':').unwrap();
    let proxy = format!("http://127.0.0.1:{port}/who");
    let headers = [format!("Host: {}", page.host), format!("Pando-Token: {}", page.token)];
    let (mut directly, mut by_proxy) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        directly += wrk(&direct, &[]);
        by_proxy += wrk(&proxy, &headers);
    }
    assert!(directly > 0.0 && by_proxy > 0.0);
    progress(format_args!(
        "nginx, requests a second: {:.0} by a published port, {:.0} through the proxy: {:.2}",
        directly / ROUNDS as f64,
        by_proxy / ROUNDS as f64,
        by_proxy / directly
    ));
}
