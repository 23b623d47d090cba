//! This computer's own daemon: where it listens, and starting it when it does not run.

use super::host::{Way, way};
use super::{Client, Host};
use crate::failure::Failure;
use pando_daemon::Config;
use pando_machine::doctor::Kvm;
use pando_machine::host;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take until it answers: it looks at every VM of an earlier one first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long another daemon that was faster than ours may take until it answers.
const OTHER_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// How many of the last lines of the log an error shows.
const LOG_LINES: usize = 5;

/// Where the daemon of this user listens.
pub(super) fn socket() -> PathBuf {
    Config::default_paths().socket
}

/// The daemon in the emulated host, when one runs.
pub(super) fn machine() -> Option<Host> {
    let running = host::running(&Config::default_paths().state_dir)?;
    Some(Host::Tcp { address: running.address(), token: running.token })
}

/// Refuses to boot a VM on this computer where that cannot work, unless `PANDO_WAY` says that it does. Takes 0.1 s.
pub(super) fn look_at_kvm() -> Result<(), Failure> {
    if way()? == Some(Way::Native) {
        return Ok(());
    }
    let kvm = Kvm::find();
    obstacle(&kvm).map_or(Ok(()), Err)
}

/// Why a VM cannot run on `kvm`, and what helps; `None` when it can.
fn obstacle(kvm: &Kvm) -> Option<Failure> {
    let advice = kvm.advice()?;
    let why = match kvm {
        Kvm::Hardware { .. } => return None,
        Kvm::Software { .. } => "this KVM emulates the CPU (PANDO_WAY=native boots on it all the same)".to_owned(),
        Kvm::NoPermission => "you may not open /dev/kvm".to_owned(),
        Kvm::Broken { why } => format!("/dev/kvm does not work: {why}"),
        Kvm::None => "there is no /dev/kvm".to_owned(),
    };
    let sentence = "this computer cannot run a VM by itself: `pando machine start` starts an emulated host that can";
    Some(Failure::new(sentence).because(why).because(advice))
}

/// Starts the daemon in a session of its own and waits until it answers.
pub(super) async fn start(client: &Client) -> Result<(), Failure> {
    let config = Config::default_paths();
    let log_path = config.state_dir.join("daemon.log");
    let log = open_log(&log_path).map_err(|error| {
        Failure::from(error).under(format!("cannot start the daemon: cannot write {}", log_path.display()))
    })?;
    let log_start = log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let program = std::env::current_exe()
        .map_err(|error| Failure::from(error).under("cannot start the daemon: cannot find this program"))?;
    // Places that are relative to this folder are not relative to the daemon's.
    let places = [
        ("PANDO_STATE_DIR", absolute(&config.state_dir)?),
        ("PANDO_RUNTIME_DIR", absolute(&config.runtime_dir)?),
        ("PANDO_CACHE_DIR", absolute(&config.cache_dir)?),
    ];
    let mut daemon = Command::new(program)
        .args(["daemon", "--detached"])
        .current_dir("/")
        .envs(places)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::from(error).under("cannot start the daemon"))?;

    let mut deadline = Instant::now() + START_LIMIT;
    let mut ended = None;
    loop {
        if client.get("/version").await.is_ok() {
            return Ok(());
        }
        if ended.is_none()
            && let Ok(Some(status)) = daemon.try_wait()
        {
            // It may have lost a race against another command's daemon, which then answers soon.
            ended = Some(status);
            deadline = deadline.min(Instant::now() + OTHER_LIMIT);
        }
        if Instant::now() > deadline {
            let mut failure = match ended {
                Some(status) => Failure::new(format!("the daemon ended at once ({status})")),
                None => Failure::new(format!("the daemon does not answer after {} s", START_LIMIT.as_secs())),
            };
            for line in last_lines(&log_path, log_start) {
                failure = failure.because(line);
            }
            return Err(failure.because(format!("its log is {}", log_path.display())));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    File::options().append(true).create(true).open(path)
}

/// What was written to the log since `start`, at most its last few lines.
fn last_lines(path: &Path, start: u64) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let new = usize::try_from(start).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
    let text = String::from_utf8_lossy(new);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|&line| line.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_is_no_obstacle_and_each_other_kvm_has_its_cure() {
        assert!(obstacle(&Kvm::Hardware { ns_per_instruction: 1 }).is_none());
        let told = |kvm| format!("{:?}", obstacle(&kvm).unwrap());
        assert!(told(Kvm::Software { ns_per_instruction: 300 }).contains("PANDO_WAY=native"));
        assert!(told(Kvm::NoPermission).contains("usermod -aG kvm"));
        assert!(told(Kvm::None).contains("firmware") && told(Kvm::Broken { why: "odd".into() }).contains("odd"));
    }

    #[test]
    fn an_error_shows_the_last_lines_that_this_start_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("daemon.log");
        fs::write(&log, "earlier\n1\n2\n\n3\n4\n5\n6\n").unwrap();
        assert_eq!(last_lines(&log, 8), ["2", "3", "4", "5", "6"]);
        assert_eq!(last_lines(&log, 14), ["4", "5", "6"]);
        assert!(last_lines(&log, 1000).is_empty());
    }
}
