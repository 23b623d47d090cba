//! Ports of the host that are ports of real guests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::TestDaemon;
use pando_wire::api::State;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Until a guest in an emulated host has woken and answered.
const LIMIT: Duration = Duration::from_secs(180);

/// What `/who` is at the host's port `at`.
fn get(at: SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_port_of_the_host_is_one_vms_awake_or_asleep_and_over_daemons_until_it_is_removed() {
    let daemon = TestDaemon::start();
    let web = daemon.boot_with("web", &["--memory", "256M", "-p", "0:3000"], &[]);
    let published = web.inspect().published;
    let at = published[0].host();
    web.sh("mkdir -p /srv");
    web.write("/srv/who", "web");
    web.start("httpd -f -p 127.0.0.1:3000 -h /srv");
    assert_eq!(get(at), "web");
    assert!(daemon.pando(&["port", "web"]).ok().ends_with(&format!("3000  published  {at}")));

    let fork = web.fork();
    assert_eq!(fork.inspect().published, []);
    fork.write("/srv/who", "fork");
    assert_eq!(get(at), "web");

    daemon.pando(&["hibernate", "web"]).ok();
    let start = Instant::now();
    assert_eq!(get(at), "web");
    eprintln!("woken and answered after {:?}", start.elapsed());
    assert_eq!(web.inspect().state, State::Running);

    daemon.end("TERM");
    daemon.restart();
    assert_eq!(web.inspect().published, published);
    assert_eq!(get(at), "web");

    daemon.pando(&["rm", "--force", "web"]).ok();
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
