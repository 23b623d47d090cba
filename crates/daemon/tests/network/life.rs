//! How long networks live, and what is left of them.

use crate::ask;
use crate::guest::Tap;
use crate::world::{INTERNET, OWNER, block_on, internet, ip, left, links, networks, on_a_host, range, run, wait_until};
use pando_daemon::network::{NetworkError, Networks, Policy, READY};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn five_hundred_networks_come_and_go_and_leave_nothing() {
    on_a_host(|| {
        let before = left();
        let networks = networks();
        for _ in 0..10 {
            let taken: Vec<_> = (0..50).map(|_| block_on(networks.take(2, &Policy::default())).unwrap()).collect();
            let addresses: BTreeSet<_> = taken.iter().map(|taken| taken.outside).collect();
            assert_eq!(addresses.len(), 50, "no two have one address");
            assert!(links() >= 50);
        }
        networks.close();
        wait_until("the end of all links", || links() == 0);
        drop(networks);
        // The table goes with the last link; VMs' links were still going when the daemon ended.
        self::networks().adopt().unwrap();
        assert_eq!(left(), before);
    });
}

#[test]
fn a_network_outlives_its_daemon_and_the_next_one_hands_its_address_to_nobody() {
    on_a_host(|| {
        let _internet = internet();
        let first = networks();
        let taken = block_on(first.take(1, &Policy::default())).unwrap();
        let mut tap = Tap::new(taken.queues);
        first.close();
        assert!(matches!(block_on(first.take(1, &Policy::default())), Err(NetworkError::Over)));
        assert_eq!(links(), 1, "what nobody took is gone");
        assert_eq!(ask(&mut tap, INTERNET, 7), Some("answer"), "the host's rules stay as long as a VM");

        let second = networks();
        second.adopt().unwrap();
        let other = block_on(second.take(1, &Policy::default())).unwrap();
        assert_ne!(other.outside, taken.outside);
        assert_eq!(ask(&mut tap, INTERNET, 7), Some("answer"));
        drop((tap, other));
        wait_until("the end of both", || links() <= READY);
        second.close();
        wait_until("the end of all", || links() == 0);
        self::networks().adopt().unwrap();
        assert_eq!(left(), "");
    });
}

/// Not a test by itself: what the next one kills.
#[test]
#[ignore = "the daemon of a test that kills it"]
fn a_daemon_that_is_killed() {
    let Ok(owner) = std::env::var("PANDO_KILLED_OWNER") else { return };
    let networks = Networks::new(&owner, range());
    println!("ready");
    loop {
        let taken = (0..5).map(|_| block_on(networks.take(2, &Policy::default())).unwrap());
        drop(taken.collect::<Vec<_>>());
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_leaves_nothing() {
    on_a_host(|| {
        let before = left();
        let mut made = 0;
        for round in 0..20 {
            let mut daemon = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "life::a_daemon_that_is_killed", "--ignored", "--nocapture"])
                .env("PANDO_KILLED_OWNER", OWNER)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(Duration::from_millis(30 + 17 * round));
            made += links();
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            wait_until("the end of its links", || links() == 0);
            Networks::new(OWNER, range()).adopt().unwrap();
            assert_eq!(left(), before, "round {round}");
        }
        assert!(made > 20, "it was killed while it had networks: {made}");
    });
}

#[test]
fn a_range_that_the_host_uses_and_one_that_is_full_are_said_so() {
    on_a_host(|| {
        let small = Networks::new(OWNER, "10.241.7.0/30".parse().unwrap());
        let taken = [(); 2].map(|()| block_on(small.take(1, &Policy::default())).unwrap());
        let full = block_on(small.take(1, &Policy::default())).unwrap_err();
        assert_eq!(full.to_string(), "all 2 networks of 10.241.7.0/30 are in use");
        drop(taken);
        wait_until("free addresses", || links() == 0);
        block_on(small.take(1, &Policy::default())).unwrap();

        ip("link add office0 type veth peer name office1");
        ip("addr add 10.240.0.9/8 dev office0");
        ip("link set office0 up");
        let taken = block_on(Networks::new("another", range()).take(1, &Policy::default())).unwrap_err();
        assert_eq!(taken.to_string(), "cannot give VMs addresses of 10.241.0.0/16: office0 uses some of them");
    });
}

#[test]
fn what_is_expected_is_ready_before_it_is_taken_and_meanwhile_nothing_is_made_for_later() {
    on_a_host(|| {
        let networks = networks();
        let expected = networks.expect(20);
        wait_until("all that is expected", || networks.ready() == 20);
        let taken: Vec<_> = (0..20).map(|_| block_on(networks.take(1, &Policy::default())).unwrap()).collect();
        thread::sleep(Duration::from_millis(500));
        assert_eq!((networks.ready(), links()), (0, 20), "who begins needs the CPU");
        drop(expected);
        wait_until("as many for the next time", || networks.ready() == 20);
        drop(taken);
    });
}

#[test]
fn the_host_is_changed_when_the_first_network_is_made_and_not_before() {
    on_a_host(|| {
        let networks = networks();
        networks.support().unwrap();
        networks.adopt().unwrap();
        assert_eq!((left().as_str(), networks.ready()), ("", 0));
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        networks.refill().unwrap();
        wait_until("a full pool", || networks.ready() == READY);
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
        assert!(run("nft", "list tables").starts_with("table inet pando_"));
        let began = Instant::now();
        block_on(networks.take(1, &Policy::default())).unwrap();
        assert!(
            began.elapsed() < Duration::from_millis(100),
            "one that is ready is not made first: {:?}",
            began.elapsed()
        );
    });
}
