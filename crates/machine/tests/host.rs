//! The emulated host that stays, through the real QEMU and with a small program in the daemon's place. Skipped with one
//! line where there is no QEMU.

use pando_machine::host::{self, StartError, StartSpec, Started, Stopped};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Answers every request, and counts its starts on the emulated host's disk.
const ANSWERS: &str = "#!/bin/sh
[ \"$1\" = daemon ] || exit 0
echo started >>/var/lib/pando/starts
echo \"starts: $(wc -l </var/lib/pando/starts)\"
exec busybox nc -ll -p 7070 -e /bin/sh -c 'read line; printf \"HTTP/1.1 200 OK\\r\\n\\r\\n{}\"'
";

fn spec(state: &Path, program: &str) -> StartSpec {
    let path = state.join("program");
    fs::write(&path, program).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    let cache = std::env::var_os("PANDO_CACHE_DIR").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    StartSpec {
        state_dir: state.to_owned(),
        cache_dir: cache.unwrap_or_else(|| home().join(".cache/pando")),
        program: path,
        memory_mib: 1024,
        disk_bytes: 1 << 30,
        kernel: None,
    }
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no qemu-system-x86_64");
    }
    found
}

#[test]
fn a_host_stays_until_it_is_stopped_and_its_disk_outlives_it() {
    if !has_qemu() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let spec = spec(state.path(), ANSWERS);
    let log = || fs::read_to_string(state.path().join("machine/daemon.log")).unwrap();
    for start in 1..=2 {
        let Started::Now(running) = host::start(&spec, &mut |_| ()).unwrap() else {
            panic!("it ran before it was started");
        };
        assert_eq!(host::start(&spec, &mut |_| ()).unwrap(), Started::Before(running.clone()));
        assert_eq!(host::running(state.path()).as_ref(), Some(&running));
        assert!(running.answers());
        assert!(log().contains(&format!("starts: {start}")), "{}", log());
        assert_eq!(host::stop(state.path()).unwrap(), Stopped::PoweredOff);
        assert_eq!(host::running(state.path()), None);
    }
    let disk = state.path().join("machine/disk.ext4");
    let check = Command::new("/sbin/e2fsck").arg("-fn").arg(disk).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn a_daemon_that_does_not_start_is_quoted_and_nothing_is_left_running() {
    if !has_qemu() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let spec = spec(state.path(), "#!/bin/sh\necho out of luck; exit 7\n");
    let error = host::start(&spec, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, StartError::Ended { daemon, .. } if daemon.contains("out of luck")), "{error}");
    assert!(error.to_string().contains("ended with 7"), "{error}");
    assert_eq!(host::running(state.path()), None);
}
