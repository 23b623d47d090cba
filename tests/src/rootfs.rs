//! What guests of tests begin from: busybox, the programs of `tests/programs`, and next to nothing else.

use crate::{prepared, setting};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
const PROGRAMS: [&str; 3] = ["oracle", "fsyncer", "getrandom"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n";
const GROUP: &str = "root:x:0:\nguest:x:1000:\naudio:x:29:guest\n";

/// Writes it to the folder `dir`.
///
/// # Panics
///
/// When it cannot.
pub fn build(dir: &Path) {
    write(dir).unwrap_or_else(|error| panic!("cannot write a root file system to {}: {error}", dir.display()));
}

fn write(dir: &Path) -> io::Result<()> {
    for folder in ["bin", "etc/pando/fork.d", "root", "home/guest", "data"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    fs::copy(BUSYBOX, dir.join("bin/busybox"))?;
    let applets = Command::new(BUSYBOX).arg("--list").output()?;
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
    for applet in applets.lines().filter(|&applet| applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet))?;
    }
    for program in PROGRAMS {
        fs::copy(prepared(setting::PROGRAMS).join(program), dir.join("bin").join(program))?;
    }
    fs::write(dir.join("etc/passwd"), PASSWD)?;
    fs::write(dir.join("etc/group"), GROUP)
}
