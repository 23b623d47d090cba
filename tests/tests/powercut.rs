//! What a guest was told to be on disk is there after the power was cut.
//!
//! The computer whose power is cut is an emulated host: what its kernel had in memory is gone, and its disk is a file
//! here. The other tests may run in such a host; this one starts two of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{Run, prepared, rootfs, setting};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(900);
/// The daemon's state lies on the disk that loses its power.
const BEGIN: &str = r#"
set -eu
mkdir -p /tmp/disk
mount -t ext4 /dev/vda /tmp/disk
export PANDO_STATE_DIR=/tmp/disk/state PANDO_RUNTIME_DIR=/run/pt PANDO_HOST=unix:///run/pt.sock
"$PANDO_BINARY" daemon --socket /run/pt.sock &
until "$PANDO_BINARY" ls -q >/dev/null 2>&1; do sleep 0.2; done
"#;
const UNTIL_THE_CUT: &str = r#"
"$PANDO_BINARY" run --name parent --memory 256M rootfs >&2
"$PANDO_BINARY" exec parent sh -c 'echo old > /data/old; sync'
"$PANDO_BINARY" fork parent --name child >&2
"$PANDO_BINARY" exec child fsyncer write /data/log 1000000 | while read -r number; do
  echo "$number"
  [ "$number" != 60 ] || echo PANDO-CUT-POWER
done
"#;
const AFTER_THE_CUT: &str = r#"
[ "$("$PANDO_BINARY" ls -q --running)" = "" ]
"$PANDO_BINARY" start child parent >&2
[ "$("$PANDO_BINARY" exec child cat /data/old)" = old ]
[ "$("$PANDO_BINARY" exec parent cat /data/old)" = old ]
"$PANDO_BINARY" exec child fsyncer check /data/log "$DURABLE"
"$PANDO_BINARY" fork child --name grandchild >&2
"$PANDO_BINARY" exec grandchild fsyncer check /data/log "$DURABLE"
"$PANDO_BINARY" stop --timeout 60s grandchild child parent >&2
"#;

#[test]
#[ignore = "needs a Linux guest: make test"]
fn what_a_forked_guest_synced_survives_a_power_cut_of_the_host() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    rootfs::build(&folder.path().join("rootfs"));
    let disk = folder.path().join("disk");
    File::create(&disk).unwrap().set_len(8 << 30).unwrap();
    Run::of(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&disk), &[], LIMIT).ok();

    let cut = machine(folder.path(), &disk, "cut.sh", UNTIL_THE_CUT, 0);
    assert_eq!(cut.code, 137, "the power was not cut: {cut:?}");
    let durable: u64 = cut.stdout.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or_default();
    assert!(durable >= 60, "{cut:?}");
    println!("{durable} records were durable");

    machine(folder.path(), &disk, "after.sh", AFTER_THE_CUT, durable).ok();
}

/// Runs a script in an emulated host with that disk.
fn machine(folder: &Path, disk: &Path, name: &str, script: &str, durable: u64) -> Run {
    let path = folder.join(name);
    fs::write(&path, format!("{BEGIN}{script}")).unwrap();
    let mut command = Command::new(prepared(setting::BINARY));
    command.args(["machine", "run", "-m", "3072", "-t", "800", "--kill-after", "0.3", "--disk"]).arg(disk);
    command.arg("-w").arg(folder).args(["--", "bash"]).arg(&path).env("DURABLE", durable.to_string());
    Run::of(&mut command, &[], LIMIT)
}
