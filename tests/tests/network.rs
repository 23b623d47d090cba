//! Guests with a network: the same inside, distinct outside, and shut in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::world::{Echo, HOST, METADATA, WORLD, World, ip};
use pando_tests::{TestDaemon, TestVm, wait_for};
use std::net::SocketAddr;
use std::time::Duration;

const PORT: u16 = 7007;
/// An emulated host is slow.
const LIMIT: Duration = Duration::from_secs(60);
/// What a guest sees of its network.
const INSIDE: &str =
    "ip -o link show eth0 | grep -o 'link/ether [^ ]*'; ip -o addr show eth0 | grep -o 'inet [^ ]*'; ip route";

/// What a server there says first, or nothing.
fn greeting(vm: &TestVm<'_>, address: impl std::fmt::Display) -> String {
    let asked = vm.exec(&["sh", "-c", &format!("sleep 2 | nc -w 3 {address} {PORT}")]);
    asked.stdout.lines().next().unwrap_or_default().to_owned()
}

fn at(address: impl Into<std::net::IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), PORT)
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_reaches_the_world_and_neither_its_host_nor_another_guest_nor_what_clouds_tell() {
    let world = World::make();
    let (there, metadata) = (world.echo(at(WORLD)), world.echo(at(METADATA)));
    let own = Echo::on_host(at([0, 0, 0, 0]));
    let daemon = TestDaemon::start();
    let web = daemon.boot_with("web", &["--memory", "256M", "--net", "nat"], &[]);

    assert_eq!(greeting(&web, WORLD), format!("hello {HOST}"), "{}", web.sh("ip addr; ip route"));
    assert_eq!(there.heard().len(), 1);
    for address in [HOST.to_string(), "192.168.241.1".into(), METADATA.to_string()] {
        assert_eq!(greeting(&web, &address), "", "{address}");
    }
    // The host's ends of what leads to guests are addresses of its own, too.
    let links = ip(&["-o", "-4", "addr"]);
    let own_ends: Vec<_> = links.lines().filter(|line| line.contains("pando")).collect();
    assert!(!own_ends.is_empty(), "{links}");
    for end in own_ends {
        let address = end.split_whitespace().skip_while(|&word| word != "inet").nth(1).unwrap();
        assert_eq!(greeting(&web, address.split('/').next().unwrap()), "", "{address}");
    }
    assert_eq!((own.heard().len(), metadata.heard().len()), (0, 0));

    let shut = daemon.boot_with("shut", &["--memory", "256M", "--net", "isolated"], &[]);
    assert_eq!(shut.sh(INSIDE), web.sh(INSIDE), "it looks like any other from inside");
    assert_eq!(greeting(&shut, WORLD), "");
    let denied = daemon.boot_with("denied", &["--memory", "256M", "--net", "nat", "--deny", "198.51.100.0/24"], &[]);
    assert_eq!(greeting(&denied, WORLD), "");
    let without = daemon.boot("without");
    assert_eq!(without.sh("ls /sys/class/net"), "lo");
    assert_eq!(there.heard().len(), 1);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn children_are_the_same_inside_and_lose_only_what_was_connected_to_the_outside() {
    let world = World::make();
    let there = world.echo(at(WORLD));
    let daemon = TestDaemon::start();
    let web = daemon.boot_with("web", &["--memory", "256M", "--net", "nat", "--cpus", "2"], &[]);
    web.write(
        "/tmp/talk",
        &format!("while :; do echo x; sleep 0.1; done | nc {WORLD} {PORT} > /tmp/heard; echo $? > /tmp/end"),
    );
    web.start("sh /tmp/talk");
    web.write(
        "/tmp/inside",
        "while :; do echo y; sleep 0.1; done | nc 127.0.0.1 8008 > /dev/null; echo $? > /tmp/inside.end",
    );
    web.start("nc -ll -p 8008 -e cat");
    wait_for("its server listens", LIMIT, || web.sh("netstat -ltn").contains(":8008"));
    web.start("sh /tmp/inside");
    wait_for("it talks", LIMIT, || there.heard().first().is_some_and(|first| first.lines > 3));
    let inside = web.sh(INSIDE);

    let (_, children) = web.fork_with(&["--count", "3"]);

    for child in &children {
        assert_eq!(child.sh(INSIDE), inside);
        wait_for("what it thought it was connected to is gone", LIMIT, || {
            child.exec(&["test", "-s", "/tmp/end"]).code == 0
        });
        assert_ne!(child.exec(&["test", "-e", "/tmp/inside.end"]).code, 0, "a connection inside goes on");
        assert_eq!(greeting(child, WORLD), format!("hello {HOST}"));
        assert!(child.sh("netstat -ltn").contains(":8008"), "listeners stay");
    }
    let lines = || there.heard()[0].lines;
    let before = lines();
    wait_for("the parent talks on", LIMIT, || lines() > before + 3);
    assert!(!there.heard()[0].has_ended);
    assert_ne!(web.exec(&["test", "-e", "/tmp/end"]).code, 0);
    assert_eq!(there.heard().len(), 1 + children.len(), "no child has tried to go on with what is its parent's");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_reaches_another_by_a_port_of_the_host_and_only_when_it_is_told() {
    let _world = World::make();
    let daemon = TestDaemon::start();
    let shop = daemon.boot_with("shop", &["--memory", "256M", "-p", &format!("{HOST}::3000")], &[]);
    shop.start("mkdir -p /srv && echo shop >/srv/who && httpd -f -p 127.0.0.1:3000 -h /srv");
    let at = shop.inspect().published[0].host();
    let ask =
        format!("(printf 'GET /who HTTP/1.0\\r\\n\\r\\n'; sleep 8) | nc -w 30 {} {} | tail -n 1", at.ip(), at.port());
    let reach = format!("nc -w 30 {} {} </dev/null >/dev/null 2>&1 && echo in || echo out", at.ip(), at.port());
    let client = daemon.boot_with("client", &["--memory", "256M", "--allow", "host"], &[]);
    assert_eq!(client.sh(&ask), "shop");
    assert_eq!(client.sh(&reach), "in");

    daemon.pando(&["net", "client", "--net", "nat"]).ok();
    assert_eq!(client.sh(&reach), "out");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_that_slept_has_a_network_again_and_what_ends_leaves_nothing_behind() {
    let world = World::make();
    let there = world.echo(at(WORLD));
    let daemon = TestDaemon::start();
    let web = daemon.boot_with("web", &["--memory", "256M", "--net", "nat"], &[]);
    assert_eq!(greeting(&web, WORLD), format!("hello {HOST}"));

    daemon.pando(&["hibernate", "web"]).ok();
    daemon.pando(&["wake", "web"]).ok();
    assert_eq!(greeting(&web, WORLD), format!("hello {HOST}"));

    daemon.pando(&["checkpoint", "create", "web", "warm"]).ok();
    daemon.pando(&["run", "--from", "warm", "--name", "twin"]).ok();
    let twin = TestVm::new(&daemon, "twin");
    assert_eq!(greeting(&twin, WORLD), format!("hello {HOST}"));

    daemon.pando(&["stop", "web"]).ok();
    daemon.pando(&["start", "web"]).ok();
    assert_eq!(greeting(&web, WORLD), format!("hello {HOST}"));
    assert_eq!(there.heard().len(), 4);

    drop((web, twin));
    drop(daemon);
    wait_for("links and rules are gone", LIMIT, || {
        let rules = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
        !ip(&["link"]).contains("pando") && !rules.contains("pando")
    });
}
