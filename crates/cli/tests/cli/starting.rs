//! Which daemon is talked to, and what happens when none is there.

use crate::daemon::Daemon;
use crate::pando::{Outcome, command, is, wait};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn a_daemon_on_tcp_gets_the_token() {
    let daemon = Daemon::saying(200, "[]");
    let mut ls = command(&["ls", "-q"]);
    ls.env("PANDO_HOST", format!("tcp://127.0.0.1:{}", daemon.port)).env("PANDO_TOKEN", "secret");
    assert_eq!(wait(ls.spawn().unwrap()), is(0, "", ""));
    assert_eq!(daemon.asked()[0].authorization.as_deref(), Some("Bearer secret"));
}

#[test]
fn a_host_that_was_asked_for_and_does_not_answer_is_an_error_and_nothing_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("p.sock");
    let mut ls = command(&["ls"]);
    ls.env("PANDO_HOST", format!("unix://{}", socket.display())).env("PANDO_STATE_DIR", dir.path().join("state"));
    let because = "No such file or directory (os error 2)";
    let expected = format!("error: cannot reach the daemon at {}\n  because: {because}\n", socket.display());
    assert_eq!(wait(ls.spawn().unwrap()), is(1, "", &expected));
    assert!(!dir.path().join("state").exists());
}

#[test]
fn a_host_that_makes_no_sense_is_an_error() {
    let mut ls = command(&["ls"]);
    ls.env("PANDO_HOST", "http://example");
    let expected = "error: PANDO_HOST is \"http://example\", which is neither unix:///path nor tcp://address:port\n";
    assert_eq!(wait(ls.spawn().unwrap()), is(1, "", expected));
}

#[test]
fn names_of_vms_are_completed_and_a_daemon_that_is_not_there_is_not_started() {
    let daemon = Daemon::saying(
        200,
        r#"[{"id":"i","name":"web","state":"paused","ending":null,"parent":null,"image":"d","cpus":1,"memory_bytes":1,
        "command":[],"env":{},"pid":7,"created_ms":0,"owner":"o","epoch":1,"usage":null}]"#,
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("words"), "").unwrap();
    let complete_for = |what: &str, host: &str| {
        let mut complete = command(&["--", "pando", what, "w"]);
        complete.current_dir(dir.path());
        complete.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
        complete.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_COMPLETE_SPACE", "true");
        complete.env("PANDO_STATE_DIR", dir.path().join("state"));
        complete.env("PANDO_RUNTIME_DIR", dir.path().join("run"));
        if !host.is_empty() {
            complete.env("PANDO_HOST", host);
        }
        wait(complete.spawn().unwrap())
    };
    let complete = |host: &str| complete_for("inspect", host);
    assert_eq!(complete(&format!("unix://{}", daemon.socket().display())).stdout, "web");
    assert_eq!(complete("").stdout, "");
    let host = format!("unix://{}", daemon.socket().display());
    assert_eq!(complete_for("cp", &host).stdout, "web:\nwords", "VMs and paths");
    assert!(!dir.path().join("state").exists() && !dir.path().join("run").exists());
}

/// The program with a state of its own below `dir` and the real daemon.
fn at_home(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command.env("PANDO_STATE_DIR", dir.join("state")).env("PANDO_RUNTIME_DIR", dir.join("run"));
    command.env("PANDO_CACHE_DIR", dir.join("cache"));
    command
}

fn run_at_home(dir: &Path, arguments: &[&str]) -> Outcome {
    wait(at_home(dir, arguments).spawn().unwrap())
}

/// The daemon that keeps `dir`.
fn pid_of(dir: &Path) -> Pid {
    let pid = std::fs::read_to_string(dir.join("state/lock")).unwrap();
    Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
}

/// The same, ended when dropped.
struct Real(Pid);

impl Real {
    fn of(dir: &Path) -> Self {
        Self(pid_of(dir))
    }

    fn is_alive(&self) -> bool {
        rustix::process::test_kill_process(self.0).is_ok()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_first_command_starts_the_daemon_and_the_next_ones_find_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = run_at_home(dir.path(), &["ls"]);
    let daemon = Real::of(dir.path());
    assert_eq!(first, is(0, "NAME  STATE  CPUS  MEMORY  PARENT  AGE\n", ""));
    assert_eq!(run_at_home(dir.path(), &["tree"]), is(0, "", ""));
    assert_eq!(run_at_home(dir.path(), &["pause", "gone"]).code, 3);
    assert_eq!(run_at_home(dir.path(), &["exec", "gone", "true"]).code, 3);
    assert_eq!(pid_of(dir.path()), daemon.0, "there is one daemon");

    let log = std::fs::read_to_string(dir.path().join("state/daemon.log")).unwrap();
    assert!(log.contains("listening"), "{log}");
    let session = rustix::process::getsid(Some(daemon.0)).unwrap_or_else(|error| panic!("{error}: {log}"));
    assert_eq!(session, daemon.0, "no terminal takes it along");
}

#[test]
fn commands_that_start_together_share_one_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..8).map(|_| at_home(dir.path(), &["ls", "-q"]).spawn().unwrap()).collect();
    let outcomes: Vec<_> = children.into_iter().map(wait).collect();
    let _daemon = Real::of(dir.path());
    assert!(outcomes.iter().all(|outcome| *outcome == is(0, "", "")), "{outcomes:?}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/images"), "in the way").unwrap();
    let outcome = run_at_home(dir.path(), &["ls"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""));
    let expected = format!("  because: error: cannot use {}", dir.path().join("state/images").display());
    assert!(outcome.stderr.starts_with("error: the daemon ended at once (exit status: 1)\n"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
}

#[test]
fn a_port_that_somebody_else_uses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(dir.path().join("token"), "secret").unwrap();
    let mut daemon = at_home(dir.path(), &["daemon", "--tcp", &address, "--token-file", "token"]);
    let outcome = wait(daemon.current_dir(dir.path()).spawn().unwrap());
    let errors: Vec<_> = outcome.stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    let expected =
        [format!("error: cannot listen on {address}"), "  because: Address already in use (os error 98)".into()];
    assert_eq!((outcome.code, errors), (1, expected.iter().map(String::as_str).collect()), "{}", outcome.stderr);
}

/// Runs the program where `/dev/kvm` is a file that even root may not open; `None` where that cannot be arranged.
fn without_permission(dir: &Path, arguments: &[&str]) -> Option<Outcome> {
    const SCRIPT: &str = "mount --bind \"$0\" /dev/kvm && exec setpriv --bounding-set=-dac_override -- \"$@\"";
    let closed = dir.join("closed");
    std::fs::File::create(&closed).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let unshared = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg(namespaces).args(["sh", "-c", SCRIPT]).arg(&closed).args(words);
        command
    };
    if !unshared(&["true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: nothing can be mounted on /dev/kvm here");
        return None;
    }
    let pando = at_home(dir, arguments);
    let mut command = unshared(&[pando.get_program().to_str().unwrap()]);
    command.args(pando.get_args()).env_clear();
    command.envs(pando.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some(Outcome { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

#[test]
fn a_kvm_that_one_may_not_open_is_said_so_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    let rootfs = dir.path().join("rootfs").to_string_lossy().into_owned();
    let Some(outcome) = without_permission(dir.path(), &["run", &rootfs]) else { return };
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""), "{outcome:?}");
    assert!(!dir.path().join("state").exists(), "no daemon is started for nothing");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(
        lines[0].starts_with("error: this computer cannot run a VM by itself: `pando machine start`"),
        "{outcome:?}"
    );
    assert_eq!(lines[1], "  because: you may not open /dev/kvm");
    assert!(lines[2].contains("sudo usermod -aG kvm $USER"), "{outcome:?}");

    let doctor = without_permission(dir.path(), &["doctor"]).unwrap().stdout;
    assert!(doctor.contains("no permission") && doctor.contains("usermod -aG kvm"), "{doctor}");
}

#[test]
fn a_way_that_is_none_is_an_error_and_that_of_the_machine_needs_one() {
    let dir = tempfile::tempdir().unwrap();
    for (way, told) in
        [("fast", "which is neither native nor machine"), ("machine", "`pando machine start` starts one")]
    {
        let outcome = wait(at_home(dir.path(), &["ls"]).env("PANDO_WAY", way).spawn().unwrap());
        assert!(outcome.code == 1 && outcome.stderr.contains(told), "{outcome:?}");
    }
    assert!(!dir.path().join("state").exists(), "nothing was started");
}
