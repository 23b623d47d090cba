//! The emulated host that runs, as one command tells the next.

use super::Files;
use super::process::Process;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// An emulated host that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub(super) process: Process,
    /// The port on 127.0.0.1 that leads to its daemon.
    pub port: u16,
    /// What lets one in there.
    pub token: String,
    /// Its RAM in MiB.
    pub memory_mib: u32,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: i64,
}

impl Running {
    /// The id of its QEMU.
    pub fn process_id(&self) -> u32 {
        self.process.id
    }

    /// Where its daemon listens: an address and a port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether its daemon answers, which takes a while after the start. Waits for up to a second.
    pub fn answers(&self) -> bool {
        super::answer::comes(self.port, &self.token)
    }
}

/// The emulated host that runs for `state_dir`, if one does that this version knows how to talk to.
pub fn running(state_dir: &Path) -> Option<Running> {
    read(&Files::of(state_dir))
}

pub(super) fn read(files: &Files) -> Option<Running> {
    let running: Running = serde_json::from_slice(&fs::read(files.record()).ok()?).ok()?;
    running.process.is_alive().then_some(running)
}

/// The part of a record that every version understands.
#[derive(Deserialize)]
struct Any {
    process: Process,
}

/// The QEMU that runs, whichever version of this program started it.
pub(super) fn process(files: &Files) -> Option<Process> {
    let Any { process } = serde_json::from_slice(&fs::read(files.record()).ok()?).ok()?;
    process.is_alive().then_some(process)
}

pub(super) fn write(files: &Files, running: &Running) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(&files.folder)?; // 0600.
    serde_json::to_writer(&mut file, running)?;
    file.flush()?;
    file.persist(files.record())?;
    Ok(())
}

/// Forgets the emulated host, which has ended. For whoever holds the lock: it could be the record of the next one.
pub(super) fn remove(files: &Files) {
    // Where these are not there, or cannot be removed, the process they name is gone all the same.
    let _ = fs::remove_file(files.record());
    let _ = fs::remove_file(files.stop_request());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(process_id: u32) -> Running {
        let process = Process::of(process_id).unwrap();
        Running { process, port: 1, token: "secret".into(), memory_mib: 1024, started_ms: 0 }
    }

    #[test]
    fn one_command_finds_what_another_started_and_no_other_user_reads_its_token() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::of(state.path());
        files.create().unwrap();
        assert_eq!(running(state.path()), None);
        let this = record(std::process::id());
        write(&files, &this).unwrap();
        assert_eq!(running(state.path()), Some(this));
        assert_eq!(files.record().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_that_has_ended_does_not_run_and_whoever_asks_touches_nothing() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::of(state.path());
        files.create().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        write(&files, &record(child.id())).unwrap();
        fs::write(files.stop_request(), "").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((running(state.path()), process(&files)), (None, None));
        assert!(files.record().exists() && files.stop_request().exists(), "only the lock's holder may remove them");
    }

    #[test]
    fn one_that_another_version_started_is_seen_and_not_talked_to() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::of(state.path());
        files.create().unwrap();
        let this = Process::of(std::process::id()).unwrap();
        fs::write(files.record(), serde_json::json!({"process": this, "road": "another"}).to_string()).unwrap();
        assert_eq!((running(state.path()), process(&files)), (None, Some(this)));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_none() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::of(state.path());
        files.create().unwrap();
        fs::write(files.record(), "{").unwrap();
        assert_eq!((running(state.path()), process(&files)), (None, None));
    }
}
