//! Stopping the emulated host that stays.

use super::Files;
use super::record;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the emulated host may take: a minute and a half for its VMs, and the rest for itself.
const LIMIT: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(100);

/// What a stop came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It powered off.
    PoweredOff,
    /// It did not in time, and was killed: as if its power had been cut.
    Killed,
    /// It did not run.
    Before,
}

/// Why the emulated host may still run.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It cannot be asked.
    #[error("cannot use {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be killed.
    #[error("cannot kill QEMU, process {process_id}")]
    Kill {
        /// Which process.
        process_id: u32,
        /// Why.
        source: io::Error,
    },
}

/// Asks the emulated host of `state_dir` to stop its VMs and itself, and waits until it has.
pub fn stop(state_dir: &Path) -> Result<Stopped, StopError> {
    stop_within(state_dir, LIMIT)
}

fn stop_within(state_dir: &Path, limit: Duration) -> Result<Stopped, StopError> {
    let files = Files::of(state_dir);
    if record::process(&files).is_none() {
        return Ok(Stopped::Before);
    }
    let failed = |path: PathBuf| move |source| StopError::File { path, source };
    // Before the lock: whoever starts it holds that until the daemon answers, and a start may be ended.
    File::create(files.stop_request()).map_err(failed(files.stop_request()))?;
    let _lock = files.lock().map_err(failed(files.folder.clone()))?;
    let Some(process) = record::process(&files) else {
        return Ok(Stopped::PoweredOff);
    };
    let deadline = Instant::now() + limit;
    let mut outcome = Stopped::PoweredOff;
    while process.is_alive() {
        if outcome == Stopped::PoweredOff && Instant::now() >= deadline {
            let process_id = process.id;
            process.kill().map_err(|source| StopError::Kill { process_id, source })?;
            outcome = Stopped::Killed;
        }
        thread::sleep(POLL);
    }
    record::remove(&files);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::Process;
    use crate::host::record::Running;
    use std::process::{Child, Command};

    fn host(state: &Path, script: &str) -> Child {
        let files = Files::of(state);
        files.create().unwrap();
        let child = Command::new("sh").args(["-c", script]).current_dir(files.control()).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let running = Running { process, port: 1, token: String::new(), memory_mib: 1, started_ms: 0 };
        record::write(&files, &running).unwrap();
        child
    }

    #[test]
    fn a_host_that_heeds_the_request_is_not_killed() {
        let state = tempfile::tempdir().unwrap();
        let mut child = host(state.path(), "until [ -e stop ]; do sleep 0.01; done");
        assert_eq!(stop(state.path()).unwrap(), Stopped::PoweredOff);
        assert!(child.wait().unwrap().success());
        assert_eq!(stop(state.path()).unwrap(), Stopped::Before);
    }

    #[test]
    fn a_host_that_another_version_started_can_be_stopped() {
        let state = tempfile::tempdir().unwrap();
        let mut child = host(state.path(), "until [ -e stop ]; do sleep 0.01; done");
        let record = Files::of(state.path()).record();
        let process = Process::of(child.id()).unwrap();
        std::fs::write(record, serde_json::json!({"process": process}).to_string()).unwrap();
        assert_eq!(stop(state.path()).unwrap(), Stopped::PoweredOff);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_host_that_does_not_is_killed_in_time() {
        let state = tempfile::tempdir().unwrap();
        let mut child = host(state.path(), "exec sleep 600");
        assert_eq!(stop_within(state.path(), Duration::from_millis(200)).unwrap(), Stopped::Killed);
        assert!(!child.wait().unwrap().success());
        assert!(crate::host::running(state.path()).is_none());
    }
}
