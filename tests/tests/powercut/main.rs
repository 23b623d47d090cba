//! What a guest was told to be on disk, and a person to be stored, is there after the power was cut.
//!
//! The computer whose power is cut is an emulated host: what its kernel had in memory is gone, and its disk is a file
//! here. The other tests may run in such a host; these start their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod linux; // Linux guests, and the daemon that stores them
mod toys; // many more cuts, with guests that start at once

use pando_tests::{Run, prepared, setting};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many times the power is cut while checkpoints are made; a night's worth finds what is rare.
const CUTS: &str = "PANDO_POWER_CUTS";
/// How many when that is not set.
const FEW_CUTS: u32 = 3;
/// One in so many cuts is of Linux guests and their daemon besides: such a round takes five times as long.
const LINUX_EACH: u32 = 10;
const LIMIT: Duration = Duration::from_secs(900);
/// Where the disk that loses its power is mounted.
const MOUNT: &str = "
set -eu
mkdir -p /tmp/disk
mount -t ext4 /dev/vda /tmp/disk
";

fn cuts() -> u32 {
    std::env::var(CUTS).map_or(FEW_CUTS, |cuts| cuts.parse().unwrap())
}

/// A moment before `limit`, by chance.
fn moment(limit: Duration) -> Duration {
    let chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_micros() % 10_000;
    limit * chance / 10_000
}

/// An emulated host's disk, empty, and the folder that it lies in.
struct Disk {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(8 << 30).unwrap();
        Run::of(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&path), &[], LIMIT).ok();
        Self { folder, path }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a script in an emulated host with this disk, and `memory_mib` of memory. Its power is cut so long after the
    /// script asks for that.
    fn run(&self, memory_mib: u32, cut_after: &str, script: &str, variables: &[(&str, String)]) -> Run {
        let path = self.folder().join("job.sh");
        fs::write(&path, format!("{MOUNT}{script}")).unwrap();
        let mut command = Command::new(prepared(setting::BINARY));
        command.args(["machine", "run", "-t", "800", "--kill-after", cut_after, "-m", &memory_mib.to_string()]);
        command.arg("--disk").arg(&self.path).arg("-w").arg(self.folder()).args(["--", "bash"]).arg(&path);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        Run::of(&mut command, &[], LIMIT)
    }
}
