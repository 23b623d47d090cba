//! What run takes for an image, and cp.

use crate::agent;
use crate::daemon::Daemon;
use crate::pando::{is, run, run_with_stdin};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;

fn digest() -> String {
    "0a1b2c3d".repeat(8)
}

/// One that imports anything and boots it.
fn booting() -> Daemon {
    booting_without(None)
}

/// The same, where VMs have no network for this reason.
fn booting_without(no_network: Option<&str>) -> Daemon {
    let vm = json!({
        "id": "i", "name": "web", "state": "running", "ending": null, "parent": null, "image": "d", "cpus": 1,
        "memory_bytes": 1, "command": [], "env": {}, "pid": 7, "created_ms": 0, "owner": "o", "epoch": 1, "usage": null,
        "no_network": no_network,
    });
    let image = json!({"digest": digest(), "size_bytes": 4096});
    Daemon::new(move |what, _| match what {
        "POST /images" => (200, image.to_string()),
        "GET /images" => (200, json!([image]).to_string()),
        "POST /vms" => (200, vm.to_string()),
        other => (404, json!({"error": format!("nothing at {other}")}).to_string()),
    })
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[test]
fn a_folder_is_sent_as_an_archive_and_booted() {
    let daemon = booting();
    fs::create_dir_all(daemon.dir().join("rootfs/srv")).unwrap();
    fs::write(daemon.dir().join("rootfs/srv/counter"), "#!").unwrap();

    let arguments = [
        "run",
        "--name",
        "web",
        "-c",
        "2",
        "-m",
        "1G",
        "-e",
        "A=1",
        "-w",
        "/srv",
        "./rootfs",
        "--",
        "/srv/counter",
        "-v",
    ];
    assert_eq!(run(&daemon, &arguments), is(0, "web\n", ""));

    let asked = daemon.asked();
    assert_eq!(daemon.asked_for(), ["POST /images", "POST /vms"]);
    assert_eq!(names(&asked[0].body), ["srv", "srv/counter"]);
    let expected = json!({
        "name": "web", "image": digest(), "cpus": 2, "memory_bytes": 1 << 30, "disk_bytes": null,
        "idle_timeout_ms": null, "network": {"mode": null, "allow": [], "deny": [], "rate_bytes": null},
        "command": ["/srv/counter", "-v"], "env": {"A": "1"}, "cwd": "/srv", "user": null, "kernel": null,
        "publish": [],
    });
    assert_eq!(serde_json::from_slice::<Value>(&asked[1].body).unwrap(), expected);
}

#[test]
fn a_vm_that_has_no_network_though_nobody_declined_one_is_told_so_in_one_line() {
    let daemon = booting_without(Some("networks need the program nft: apt-get install nftables"));
    let line = "no network: networks need the program nft: apt-get install nftables (pando doctor says more; --net none to \
                not be told)\n";
    assert_eq!(run(&daemon, &["run", "0a1b2c"]), is(0, "web\n", line));
    let outcome = run(&daemon, &["run", "0a1b2c", "--deny", "10.0.0.0/8", "--rate", "1M"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let asked: Value = serde_json::from_slice(&daemon.asked().last().unwrap().body).unwrap();
    let network = json!({"mode": null, "allow": [], "deny": ["10.0.0.0/8"], "rate_bytes": 1 << 20});
    assert_eq!(asked["network"], network, "the daemon knows what that means");
}

#[test]
fn a_file_is_sent_as_it_is() {
    let daemon = booting();
    let image: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    fs::write(daemon.dir().join("disk.img"), &image).unwrap();
    assert_eq!(run(&daemon, &["run", "disk.img"]), is(0, "web\n", ""));
    assert!(daemon.asked()[0].body == image);
}

#[test]
fn the_beginning_of_a_digest_is_an_image_that_was_imported() {
    let daemon = booting();
    assert_eq!(run(&daemon, &["run", "0a1b2c"]), is(0, "web\n", ""));
    assert_eq!(daemon.asked_for(), ["GET /images", "POST /vms"]);
}

#[test]
fn an_image_that_is_not_there_is_an_error_in_one_sentence() {
    let daemon = booting();
    for image in ["./nothing", "ffffffff"] {
        let sentence =
            format!("error: no image {image}: neither a file or folder here nor an imported image's digest\n");
        assert_eq!(run(&daemon, &["run", image]), is(3, "", &sentence));
    }
}

#[test]
fn a_daemon_that_refuses_an_image_is_heard() {
    let daemon = Daemon::saying(400, r#"{"error":"cannot import the image","because":["it is empty"]}"#);
    fs::create_dir(daemon.dir().join("rootfs")).unwrap();
    let outcome = run(&daemon, &["run", "rootfs"]);
    assert_eq!(outcome, is(1, "", "error: cannot import the image\n  because: it is empty\n"));
}

#[test]
fn a_folder_that_cannot_be_read_whole_is_not_imported_in_part() {
    let daemon = booting();
    // The kernel says that each file in there has a page of bytes; it has fewer.
    let short = std::path::Path::new("/sys/kernel/mm/transparent_hugepage");
    if !short.exists() {
        eprintln!("skipped: no {}", short.display());
        return;
    }
    let outcome = run(&daemon, &["run", short.to_str().unwrap()]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let because = "became shorter while it was being read\n";
    assert!(outcome.stderr.starts_with("error: cannot use /sys/kernel/mm/transparent_hugepage as an image\n"));
    assert!(outcome.stderr.ends_with(because), "{outcome:?}");
    assert!(!daemon.asked_for().contains(&"POST /vms".to_owned()));
    assert!(!daemon.asked_for().contains(&"POST /images".to_owned()), "the daemon saw it break off");
}

/// What was put at `path`: the names, and the first file's contents.
fn put_at(path: &str) -> (Vec<String>, String) {
    let put = agent::PUT.lock().unwrap();
    let (_, bytes) = put.iter().rev().find(|(at, _)| at == path).expect("something was put there");
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut contents = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().uid().unwrap(), 0, "files belong to root in the VM");
        if contents.is_empty() {
            entry.read_to_string(&mut contents).unwrap();
        }
    }
    (names(bytes), contents)
}

#[test]
fn cp_into_a_folder_keeps_the_name_and_elsewhere_takes_the_new_one() {
    let daemon = booting();
    fs::write(daemon.dir().join("page"), "hello").unwrap();
    fs::create_dir(daemon.dir().join("site")).unwrap();
    fs::write(daemon.dir().join("site/a"), "a").unwrap();

    assert_eq!(run(&daemon, &["cp", "page", "web:/srv"]), is(0, "", ""));
    assert_eq!(put_at("/srv"), (vec!["page".to_owned()], "hello".to_owned()));
    assert_eq!(run(&daemon, &["cp", "page", "web:/opt/new"]), is(0, "", ""));
    assert_eq!(put_at("/opt"), (vec!["new".to_owned()], "hello".to_owned()));
    assert_eq!(run(&daemon, &["cp", "site/.", "web:/var/www"]), is(0, "", ""));
    assert_eq!(put_at("/var").0, ["www", "www/a"]);
    assert_eq!(run_with_stdin(&daemon, &["cp", "-", "web:/tmp"], b"tar".to_vec()), is(0, "", ""));
}

#[test]
fn cp_refuses_what_cannot_be() {
    let daemon = booting();
    fs::create_dir(daemon.dir().join("site")).unwrap();
    fs::write(daemon.dir().join("page"), "x").unwrap();
    for (code, from, to, sentence) in [
        (1, "site", "web:/etc/hosts", "error: cannot copy site to web:/etc/hosts, which is not a folder\n"),
        (3, "page", "web:/new/", "error: there is no folder web:/new/\n"),
        (3, "nothing", "web:/srv", "error: cannot read nothing\n  because: No such file or directory (os error 2)\n"),
        (1, "page", "other", "error: neither side is in a VM; one of them must be VM:PATH\n"),
        (1, "page", "web:/full/x", "error: web: no space left on the disk\n"),
        (3, "web:/nothing", ".", "error: web: there is no /nothing\n"),
        (1, "a:/x", "b:/y", "error: cannot copy from VM to VM in one go; copy to this computer first\n"),
    ] {
        assert_eq!(run(&daemon, &["cp", from, to]), is(code, "", sentence), "{from} {to}");
    }
}

#[test]
fn cp_out_of_a_vm_is_cp() {
    let daemon = booting();
    let here = daemon.dir();
    assert_eq!(run(&daemon, &["cp", "web:/etc", "."]), is(0, "", ""));
    assert_eq!(fs::read_to_string(here.join("etc/hosts")).unwrap(), "lo\n");
    assert_eq!(run(&daemon, &["cp", "web:/etc/hosts", "renamed"]), is(0, "", ""));
    assert_eq!(fs::read_to_string(here.join("renamed")).unwrap(), "lo\n");
    let archive = run(&daemon, &["cp", "web:/etc", "-"]).stdout;
    assert_eq!(names(archive.as_bytes()), ["etc/hosts"]);
}
