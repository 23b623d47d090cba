//! OpenSSH's client and a VM that has neither a network nor an SSH server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{Run, TestDaemon, wait_for};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a Linux guest: make test"]
fn programs_terminals_and_ports_are_reached_by_ssh_and_end_as_they_end() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    let ssh = |arguments: &[&str], input: &str| -> Run {
        daemon.pando_with(&[&["ssh"], arguments].concat(), input.as_bytes())
    };

    let both = ssh(&["web", "echo out; echo err >&2; exit 7"], "");
    assert_eq!((both.code, both.stdout.as_str(), both.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(ssh(&["web", "tr a-z A-Z; pwd"], "what is sent\n").ok(), "WHAT IS SENT\n/root");
    assert_eq!(ssh(&["guest@web.pando", "id -un; echo $HOME"], "").ok(), "guest\n/home/guest");
    assert_eq!(ssh(&["web", "kill -9 $$"], "").code, 137);
    let terminal = ssh(&["web", "-tt", "stty size; tty"], "").stdout;
    assert!(terminal.contains("/dev/pts/"), "{terminal}");
    assert_ne!(ssh(&["nobody@web", "true"], "").code, 0);
    let absent = ssh(&["absent", "true"], "");
    assert!(absent.code != 0 && absent.stderr.contains("no VM is called absent"), "{absent:?}");

    web.start("nc -ll -p 8008 -e cat");
    wait_for("it listens", LIMIT, || web.sh("netstat -ltn").contains(":8008 "));
    assert_eq!(ssh(&["web", "-W", "localhost:8008"], "there and back\n").ok(), "there and back");
    assert_ne!(ssh(&["web", "-W", "localhost:8009"], "").code, 0);
    assert_ne!(ssh(&["web", "-W", "192.0.2.1:80"], "").code, 0, "nothing but the guest itself is reached");

    let fork = web.fork();
    assert_eq!(ssh(&[fork.name(), "hostname"], "").ok(), fork.name());
    daemon.pando(&["hibernate", "web"]).ok();
    assert_eq!(ssh(&["web", "hostname"], "").ok(), "web");
}
