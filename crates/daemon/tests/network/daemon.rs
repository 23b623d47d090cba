//! Networks as a daemon gives them to VMs, whose monitors are programs that keep their taps.

use crate::guest::{OWN, Tap, frame, udp};
use crate::support::{Daemon, signal_kill};
use crate::world::{INTERNET, ONE, block_on, internet, ip, left, links, on_a_host, wait_until};
use crate::{ask, ask_for};
use futures_util::future::join_all;
use hyper::Method;
use pando_wire::api::{NetworkMode, State, Traffic, Vm};
use pando_wire::network::MAC;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use smoltcp::wire::EthernetProtocol;
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// The guest's side of a VM's network: nobody is in there.
fn tap_of(vm: &Vm) -> Tap {
    let pid = vm.pid.unwrap();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let tap = entries.into_iter().find(|path| fs::read_link(path).is_ok_and(|file| file.ends_with("net/tun"))).unwrap();
    let number = tap.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    Tap::new(vec![pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()])
}

async fn traffic(daemon: &Daemon, vm: &str) -> Traffic {
    daemon.vm(vm).await.traffic.unwrap()
}

async fn set(daemon: &Daemon, net: &str) {
    assert_eq!(daemon.put("/settings/net", json!({"value": net})).await.0, 200);
}

/// Boots a VM that wants this network.
async fn run_with(daemon: &Daemon, name: &str, network: Value) -> (u16, Value) {
    let kernel = daemon.path().join("kernel");
    fs::write(&kernel, "no kernel").unwrap();
    let image = daemon.image().await;
    let request = json!({"name": name, "image": image, "kernel": kernel, "network": network});
    let (status, vm) = daemon.post("/vms", request).await;
    (status.as_u16(), vm)
}

#[test]
fn a_vm_that_says_nothing_has_the_network_that_the_setting_says() {
    on_a_host(|| {
        let _internet = internet();
        block_on(async {
            let daemon = Daemon::start().await;
            let none = daemon.run("none").await;
            assert_eq!((none.network.mode, none.no_network, none.traffic), (NetworkMode::None, None, None));
            set(&daemon, "auto").await;
            let auto = daemon.run("auto").await;
            assert_eq!((auto.network.mode, auto.no_network), (NetworkMode::Nat, None));
            set(&daemon, "isolated").await;
            assert_eq!(daemon.run("isolated").await.network.mode, NetworkMode::Isolated);
            // What is said goes before it, and who is allowed or denied something has a network to be so.
            let (_, told) = run_with(&daemon, "told", json!({"mode": "none"})).await;
            assert_eq!(told["network"]["mode"], "none");
            let (_, denied) = run_with(&daemon, "denied", json!({"deny": ["10.0.0.0/8"]})).await;
            assert_eq!(denied["network"]["mode"], "nat");
            assert_eq!(run_with(&daemon, "both", json!({"mode": "none", "deny": ["10.0.0.0/8"]})).await.0, 400);
        });
    });
}

#[test]
fn where_no_network_can_be_made_a_vm_that_says_nothing_has_none_and_is_told_why() {
    on_a_host(|| {
        ip("link add office0 type veth peer name office1");
        ip("addr add 10.240.0.9/8 dev office0");
        ip("link set office0 up");
        block_on(async {
            let daemon = Daemon::start().await;
            set(&daemon, "auto").await;
            let vm = daemon.run("alone").await;
            assert_eq!(vm.network.mode, NetworkMode::None);
            let why = "cannot give VMs addresses of 10.241.0.0/16: office0 uses some of them";
            assert_eq!(vm.no_network.as_deref(), Some(why));
            assert_eq!(daemon.vm("alone").await.no_network, None, "it is news when it begins");
            set(&daemon, "nat").await;
            assert_eq!(daemon.try_run("insists").await.0, 503);
        });
    });
}

#[test]
fn a_fleet_of_forks_has_a_network_each_and_what_one_was_refused_is_shown_of_it_alone() {
    on_a_host(|| {
        let _internet = internet();
        block_on(async {
            let daemon = Daemon::start().await;
            set(&daemon, "auto").await;
            let web = daemon.run("web").await;
            let names: Vec<_> = (0..20).map(|index| format!("web-{index}")).collect();
            let report = daemon.fork("web", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
            assert!(report.children.iter().all(|child| child.error.is_none()), "{report:?}");

            let wrong = frame([2, 1, 2, 3, 4, 5], EthernetProtocol::Ipv4, &udp(OWN, INTERNET, 7, b"ask"));
            tap_of(&web).send(&wrong);
            let own = traffic(&daemon, "web").await;
            assert_eq!((own.refused.get("spoofed_mac"), own.sent.packets), (Some(&1), 1), "{own:?}");
            assert_eq!(own.sent.bytes, wrong.len() as u64);
            let mut outside = BTreeSet::from([own.outside]);
            for name in &names {
                let child = traffic(&daemon, name).await;
                assert_eq!((child.refused.len(), child.sent.packets), (0, 0), "{child:?}");
                outside.insert(child.outside);
            }
            assert_eq!(outside.len(), 21);
            // The right one passes.
            tap_of(&web).send(&frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, INTERNET, 7, b"ask")));
            let own = traffic(&daemon, "web").await;
            assert_eq!((own.refused.values().sum::<u64>(), own.sent.packets), (1, 2), "{own:?}");
        });
    });
}

#[test]
fn what_a_running_vm_reaches_is_changed_at_once_and_written_down_and_none_stays_none() {
    on_a_host(|| {
        let _internet = internet();
        block_on(async {
            let mut daemon = Daemon::start().await;
            let none = daemon.run("none").await;
            set(&daemon, "nat").await;
            let web = daemon.run("web").await;
            let change = async |daemon: &Daemon, vm: &str, network: Value| {
                let (status, vm) = daemon.call(Method::PATCH, &format!("/vms/{vm}/network"), network).await;
                (status.as_u16(), vm)
            };
            let mut tap = tap_of(&web);
            assert_eq!(ask(&mut tap, ONE, 7), Some("answer"));
            let (status, changed) = change(&daemon, "web", json!({"deny": ["203.0.113.0/24"]})).await;
            assert_eq!((status, &changed["network"]["mode"]), (200, &json!("nat")), "{changed}");
            assert_eq!(ask(&mut tap, ONE, 7), Some("refusal"));
            assert_eq!(ask(&mut tap, INTERNET, 7), Some("answer"));

            // By the next daemon, too, and it is what forks begin with.
            daemon.stop().await;
            daemon.start_again().await;
            assert_eq!(daemon.vm("web").await.network.deny, ["203.0.113.0/24"]);
            daemon.fork("web", &["child"]).await;
            assert_eq!(ask(&mut tap_of(&daemon.vm("child").await), ONE, 7), Some("refusal"));
            let (status, _) = change(&daemon, "web", json!({"mode": "isolated"})).await;
            assert_eq!((status, ask(&mut tap, INTERNET, 7)), (200, Some("refusal")));

            for (vm, mode) in [("none", "nat"), ("web", "none")] {
                let (status, refused) = change(&daemon, vm, json!({"mode": mode})).await;
                assert_eq!(status, 400, "{refused}");
                assert!(refused["error"].as_str().unwrap().contains("from its boot on or never"), "{refused}");
            }
            assert_eq!(none.network.mode, NetworkMode::None);
            assert_eq!(change(&daemon, "web", json!({"allow": ["169.254.169.254"]})).await.0, 400);
            assert_eq!(daemon.vm("web").await.network.mode, NetworkMode::Isolated, "what is refused changes nothing");
        });
    });
}

#[test]
fn a_vm_that_is_sent_much_from_outside_is_used_and_falls_asleep_when_that_ends() {
    on_a_host(|| {
        let _internet = internet();
        block_on(async {
            let daemon = Daemon::start().await;
            set(&daemon, "nat").await;
            let mut tap = tap_of(&daemon.run("web").await);
            assert_eq!(daemon.put("/settings/idle-timeout", json!({"value": "2s"})).await.0, 200);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(6) {
                // Each time more than makes a use of it, however slow this computer is.
                (0..20).for_each(|_| assert_eq!(ask_for(&[7; 1000], &mut tap, INTERNET, 7), Some("answer")));
                assert_eq!(daemon.vm("web").await.state, State::Running, "after {:?}", start.elapsed());
            }
            while daemon.vm("web").await.state != State::Hibernated {
                assert!(start.elapsed() < Duration::from_secs(60), "it falls asleep");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    });
}

#[test]
fn five_hundred_vms_that_run_and_end_leave_nothing() {
    const VMS: usize = 500;
    const AT_ONCE: usize = 10;
    on_a_host(|| {
        let before = left();
        block_on(async {
            let mut daemon = Daemon::start().await;
            set(&daemon, "nat").await;
            for round in 0..VMS / AT_ONCE {
                let names: Vec<_> = (0..AT_ONCE).map(|index| format!("vm-{round}-{index}")).collect();
                let vms = join_all(names.iter().map(|name| daemon.run(name))).await;
                assert!(vms.iter().all(|vm| vm.network.mode == NetworkMode::Nat));
                // One's monitor is killed, and sometimes the daemon is another one then.
                signal_kill(vms[round % AT_ONCE].pid.unwrap());
                if round % 10 == 5 {
                    daemon.stop().await;
                    daemon.start_again().await;
                    set(&daemon, "nat").await;
                }
                let remove = async |name: &String| daemon.delete(&format!("/vms/{name}?force=true")).await.0;
                let removed = join_all(names.iter().map(remove)).await;
                assert!(removed.iter().all(hyper::StatusCode::is_success), "{removed:?}");
            }
            daemon.stop().await;
            wait_until("the end of all links", || links() == 0);
            // What is the host's goes with the last link, or when the next daemon begins.
            daemon.start_again().await;
            daemon.stop().await;
        });
        assert_eq!(left(), before);
    });
}
