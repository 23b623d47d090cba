//! What the host sees of the agent, over a pair of sockets instead of vsock, with the host's own programs as guests'.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are no test to clippy")]

use pando_agent::{Agent, launch, reaper::Reaper, server};
use pando_wire::{
    agent::{
        BARRIER_LIMIT_MS, BARRIER_NOTICE_MS, Exec, Exit, Failure, FailureKind, Identity, Input, RESEED_LIMIT_MS, Reply,
        Request, WindowSize,
    },
    frame,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

/// One reaper for the process, since it takes every child.
fn reaper() -> Arc<Reaper> {
    static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
    Arc::clone(REAPER.get_or_init(|| Reaper::start().unwrap()))
}

fn agent_in(root: &Path) -> Arc<Agent> {
    Arc::new(Agent::new(reaper(), PathBuf::from(env!("CARGO_BIN_EXE_pando-agent")), None, root.to_owned()))
}

fn agent() -> Arc<Agent> {
    agent_in(Path::new("/"))
}

/// The host's end of a connection.
struct Host(UnixStream);

impl Host {
    fn ask(agent: &Arc<Agent>, request: Request) -> Self {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        server::admit(agent, guest.into());
        match frame::write(&mut &host, &request) {
            // Refused before it asked: why is there to be read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => (),
            written => written.unwrap(),
        }
        Self(host)
    }

    fn exec(agent: &Arc<Agent>, exec: Exec) -> Self {
        let host = Self::ask(agent, Request::Exec(exec));
        assert!(matches!(host.next(), Some(Reply::Started { .. })));
        host
    }

    fn send(&self, input: Input) {
        frame::write(&mut &self.0, &input).unwrap();
    }

    fn next(&self) -> Option<Reply> {
        frame::read(&mut &self.0).unwrap()
    }

    /// Standard output, standard error and the last reply.
    fn rest(&self) -> (Vec<u8>, Vec<u8>, Option<Reply>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Some(Reply::Stdout(bytes)) => stdout.extend(bytes),
                Some(Reply::Stderr(bytes)) => stderr.extend(bytes),
                last => return (stdout, stderr, last),
            }
        }
    }

    fn until(&self, words: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(words) {
            match self.next() {
                Some(Reply::Stdout(bytes)) => seen += &String::from_utf8_lossy(&bytes),
                other => panic!("{words:?} did not come: {seen:?}, then {other:?}"),
            }
        }
        seen
    }
}

fn sh(script: &str) -> Exec {
    Exec { argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..Exec::default() }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Whether it was reseeded before its programs ran, and what went wrong.
fn adopt(agent: &Arc<Agent>, identity: Identity) -> (bool, Option<Failure>) {
    match Host::ask(agent, Request::Adopt { identity, seed: [7; 32] }).next() {
        Some(Reply::Adopted { reseeded, failure }) => (reseeded, failure),
        other => panic!("{other:?}"),
    }
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_has_two_outputs_and_a_status() {
    let host = Host::exec(&agent(), sh("echo out; echo err >&2; exit 7"));
    let (stdout, stderr, last) = host.rest();
    assert_eq!((text(&stdout), text(&stderr)), ("out\n", "err\n"));
    assert_eq!(last, Some(Reply::Exited(Exit::Code(7))));
    assert_eq!(host.next(), None);
}

#[test]
fn input_reaches_the_program_whole_and_ends() {
    let host = Host::exec(&agent(), Exec { argv: vec!["sha256sum".into()], ..Exec::default() });
    for chunk in 0..64u8 {
        host.send(Input::Stdin(vec![chunk; 64 << 10]));
    }
    host.send(Input::Stdin(vec![]));
    let (stdout, _, last) = host.rest();
    let expected = Host::exec(
        &agent(),
        sh("i=0; while [ $i -lt 64 ]; do head -c 65536 /dev/zero | tr '\\000' \"\\\\$(printf %o $i)\"; \
            i=$((i+1)); done | sha256sum"),
    );
    assert_eq!(last, Some(Reply::Exited(Exit::Code(0))));
    assert_eq!(text(&stdout), text(&expected.rest().0));
}

#[test]
fn much_output_arrives_whole_before_the_status() {
    let (stdout, _, last) = Host::exec(&agent(), sh("head -c 3000000 /dev/zero")).rest();
    assert_eq!((stdout.len(), last), (3_000_000, Some(Reply::Exited(Exit::Code(0)))));
}

#[test]
fn a_daemon_that_keeps_the_pipe_does_not_hold_up_the_status() {
    let began = Instant::now();
    let (stdout, _, last) = Host::exec(&agent(), sh("sleep 8 & echo started")).rest();
    assert_eq!((text(&stdout), last), ("started\n", Some(Reply::Exited(Exit::Code(0)))));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn what_is_written_right_after_the_end_still_arrives() {
    let (stdout, _, last) = Host::exec(&agent(), sh("(sleep 0.03; echo late) & echo early")).rest();
    assert_eq!((text(&stdout), last), ("early\nlate\n", Some(Reply::Exited(Exit::Code(0)))));
}

#[test]
fn much_output_of_a_terminal_arrives_whole_before_the_status() {
    let terminal = Some(WindowSize { rows: 24, columns: 80 });
    let (stdout, _, last) = Host::exec(&agent(), Exec { terminal, ..sh("seq 1 20000; exit 2") }).rest();
    assert!(text(&stdout).ends_with("\n19999\r\n20000\r\n"));
    assert_eq!(last, Some(Reply::Exited(Exit::Code(2))));
}

#[test]
fn a_daemon_that_keeps_writing_does_not_hold_up_the_status_for_ever() {
    let began = Instant::now();
    let host = Host::exec(&agent(), sh("timeout 8 yes & exit 3"));
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Code(3))));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn what_is_missing_is_told_from_what_is_forbidden() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    let cases = [
        (Exec { argv: vec!["no-such-program".into()], ..Exec::default() }, FailureKind::NotFound),
        (Exec { argv: vec![plain.to_str().unwrap().into()], ..Exec::default() }, FailureKind::NotPermitted),
        (Exec { cwd: Some("/no/such/place".into()), ..sh("true") }, FailureKind::NotFound),
        (Exec { user: Some("no-such-user".into()), ..sh("true") }, FailureKind::NotFound),
        (Exec::default(), FailureKind::Other),
    ];
    for (exec, kind) in cases {
        match Host::ask(&agent(), Request::Exec(exec.clone())).next() {
            Some(Reply::Failed(failure)) => assert_eq!(failure.kind, kind, "{exec:?}: {failure:?}"),
            other => panic!("{exec:?}: {other:?}"),
        }
    }
}

#[test]
fn the_environment_is_the_default_then_the_vm_then_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent_in(directory.path());
    let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let identity = Identity { env: env(&[("A", "vm"), ("B", "vm")]), ..Identity::default() };
    assert_eq!(adopt(&agent, identity), (false, None));
    let exec = Exec { env: env(&[("B", "request")]), cwd: Some("/usr".into()), ..sh("env; pwd") };
    let (stdout, ..) = Host::exec(&agent, exec).rest();
    let lines: Vec<_> = text(&stdout).lines().collect();
    for line in ["A=vm", "B=request", "HOME=/root", "/usr"] {
        assert!(lines.contains(&line), "{line} is not in {lines:?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("PATH=/usr/local/sbin:")));
    assert!(!lines.iter().any(|line| line.starts_with("CARGO")), "the agent's own environment leaks");
}

#[test]
fn a_user_has_its_ids_and_its_groups_and_can_open_its_streams() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "ana:x:4711:4712::/home/ana:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "ana:x:4712:\nextra:x:4713:ana\n").unwrap();
    let exec = Exec { user: Some("ana".into()), ..sh("id -u; id -G; echo $HOME; echo open >/dev/stderr") };
    let (stdout, stderr, last) = Host::exec(&agent_in(root.path()), exec).rest();
    assert_eq!(text(&stdout), "4711\n4712 4713\n/home/ana\n");
    assert_eq!((text(&stderr), last), ("open\n", Some(Reply::Exited(Exit::Code(0)))));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let host = Host::exec(&agent(), sh("sleep 60; true"));
    host.send(Input::Signal(15));
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Signal(15))));
}

#[test]
fn a_host_that_goes_away_hangs_up_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("hung-up");
    let script = format!("trap 'echo yes >{}; exit' HUP; echo ready; while :; do sleep 0.05; done", mark.display());
    let host = Host::exec(&agent(), sh(&script));
    host.until("ready");
    drop(host);
    wait_until("the hang-up", || mark.exists());
}

#[test]
fn a_connection_torn_by_a_fork_leaves_the_program_running() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("went-on");
    let script = format!("echo ready; sleep 0.5; echo unheard; echo yes >{}", mark.display());
    let host = Host::exec(&agent(), sh(&script));
    // A Unix socket that is closed with bytes unread resets the other side, like virtio-vsock in a child.
    let mut first = [0; 1];
    (&host.0).read_exact(&mut first).unwrap();
    drop(host);
    wait_until("the program's end", || mark.exists());
}

#[test]
fn a_terminal_controls_its_program_and_has_a_size() {
    let terminal = Some(WindowSize { rows: 33, columns: 101 });
    let script = "tty; stty size; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done";
    let host = Host::exec(&agent(), Exec { terminal, ..sh(script) });
    let seen = host.until("ready");
    assert!(seen.contains("/dev/pts/") && seen.contains("33 101"), "{seen:?}");
    host.send(Input::Resize(WindowSize { rows: 20, columns: 80 }));
    host.until("20 80");
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Code(5))));

    let host = Host::exec(&agent(), Exec { terminal, ..sh("echo ready; exec sleep 60") });
    host.until("ready");
    host.send(Input::Stdin(b"\x03".to_vec()));
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Signal(2))));
}

#[test]
fn closing_the_input_of_a_terminal_is_its_end_of_file() {
    let terminal = Some(WindowSize { rows: 24, columns: 80 });
    let host = Host::exec(&agent(), Exec { argv: vec!["cat".into()], terminal, ..Exec::default() });
    host.send(Input::Stdin(b"line\n".to_vec()));
    host.send(Input::Stdin(vec![]));
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Code(0))));
}

#[test]
fn a_directory_comes_back_as_it_went_in() {
    let root = tempfile::tempdir().unwrap();
    let agent = agent_in(root.path());
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, kind, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(kind);
        archive.append_data(&mut header, path, bytes).unwrap();
    };
    add("./", 0o700, tar::EntryType::Directory, b"");
    add("d/", 0o555, tar::EntryType::Directory, b"");
    add("d/tool", 0o751, tar::EntryType::Regular, &[9; 100_000]);
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_uid(0);
    link.set_gid(0);
    archive.append_link(&mut link, "d/link", "tool").unwrap();
    let archive = archive.into_inner().unwrap();

    let host = Host::ask(&agent, Request::Put { path: "/".into() });
    for chunk in archive.chunks(50_000) {
        host.send(Input::Stdin(chunk.to_vec()));
    }
    host.send(Input::Stdin(vec![]));
    assert_eq!(host.next(), Some(Reply::Done));
    let tool = fs::metadata(root.path().join("d/tool")).unwrap();
    assert_eq!((tool.permissions().mode() & 0o7777, tool.len()), (0o751, 100_000));
    assert_eq!(fs::metadata(root.path().join("d")).unwrap().permissions().mode() & 0o7777, 0o555);

    let stat = Host::ask(&agent, Request::Stat { path: "d/tool".into() }).next();
    assert_eq!(stat, Some(Reply::Stat { directory: false, len: 100_000 }));

    let (bytes, _, last) = Host::ask(&agent, Request::Get { path: "/d".into() }).rest();
    assert_eq!(last, Some(Reply::Done));
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            (entry.path().unwrap().display().to_string(), header.mode().unwrap() & 0o7777, entry.size())
        })
        .collect();
    let expected = [("d", 0o555, 0), ("d/link", 0o777, 0), ("d/tool", 0o751, 100_000)];
    assert_eq!(entries, expected.map(|(path, mode, len)| (path.to_owned(), mode, len)));
    fs::set_permissions(root.path().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// An entry whose name the `tar` crate would not write.
fn raw_entry(name: &str, kind: tar::EntryType, link: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend(bytes);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

#[test]
fn an_archive_cannot_write_outside_of_its_directory() {
    use tar::EntryType::{Fifo, Link, Regular, Symlink};
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("into")).unwrap();
    fs::create_dir(root.path().join("secret")).unwrap();
    fs::write(root.path().join("secret/key"), "key").unwrap();
    let outside = root.path().join("secret").display().to_string();
    let archives = [
        raw_entry("../planted", Regular, "", b"x"),
        raw_entry("a/../../planted", Regular, "", b"x"),
        [raw_entry("link", Symlink, &outside, b""), raw_entry("link/planted", Regular, "", b"x")].concat(),
        [raw_entry("up", Symlink, "..", b""), raw_entry("up/planted", Regular, "", b"x")].concat(),
        raw_entry("hard", Link, &format!("{outside}/key"), b""),
        raw_entry("fifo", Fifo, "", b""),
    ];
    for (index, archive) in archives.into_iter().enumerate() {
        let host = Host::ask(&agent_in(root.path()), Request::Put { path: "into".into() });
        host.send(Input::Stdin(archive));
        host.send(Input::Stdin(vec![0; 1024]));
        host.send(Input::Stdin(vec![]));
        assert!(matches!(host.next(), Some(Reply::Failed(_))), "archive {index} was taken");
        assert!(!root.path().join("planted").exists() && !root.path().join("secret/planted").exists());
        assert!(!root.path().join("into/hard").exists());
    }
    // A name that begins with a slash stays inside.
    let host = Host::ask(&agent_in(root.path()), Request::Put { path: "into".into() });
    host.send(Input::Stdin([raw_entry("/planted", Regular, "", b"x"), vec![0; 1024]].concat()));
    host.send(Input::Stdin(vec![]));
    assert_eq!(host.next(), Some(Reply::Done));
    assert!(root.path().join("into/planted").exists());
}

#[test]
fn a_child_takes_on_its_identity_and_runs_its_hooks_in_order() {
    let root = tempfile::tempdir().unwrap();
    let hooks = root.path().join("etc/pando/fork.d");
    fs::create_dir_all(&hooks).unwrap();
    let hook = |name: &str, mode: u32, script: &str| {
        let path = hooks.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let log = root.path().join("log").display().to_string();
    hook("20-second", 0o755, &format!("echo second $SECRET >>{log}"));
    hook("10-first", 0o755, &format!("echo first $PANDO_NAME $PANDO_GENERATION >>{log}"));
    hook("15-not-executable", 0o644, &format!("echo no >>{log}"));
    let agent = agent_in(root.path());
    let identity = Identity {
        name: "base.1".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        generation: 3,
        env: BTreeMap::from([("SECRET".into(), "s3".into())]),
    };
    assert_eq!(adopt(&agent, identity.clone()), (false, None));
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
    assert_eq!(read("log"), "first base.1 3\nsecond s3\n");
    assert_eq!(read("etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
    assert_eq!((read("etc/hostname"), read("run/pando/generation")), ("base.1\n".into(), "3".into()));
    let pong = Host::ask(&agent, Request::Ping).next();
    assert!(matches!(pong, Some(Reply::Pong { generation: 3, .. })), "{pong:?}");

    hook("30-bad", 0o755, "exit 4");
    let failure = adopt(&agent, Identity { generation: 4, ..identity }).1.unwrap();
    assert!(failure.message.contains("30-bad: exited with status 4"), "{failure:?}");
    assert_eq!(fs::read_to_string(root.path().join("run/pando/generation")).unwrap(), "4");
}

/// The parent's part of a fork, which starts the heartbeat.
fn barrier(agent: &Arc<Agent>) {
    assert_eq!(Host::ask(agent, Request::ForkBarrier).next(), Some(Reply::Done));
}

/// The heart that this process has.
fn heart() -> Pid {
    let heart = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let ours =
            fs::read_to_string(entry.path().join("status")).ok()?.contains(&format!("PPid:\t{}", std::process::id()));
        (ours && command.ends_with("\0beat\0")).then(|| entry.file_name().to_str()?.parse::<i32>().ok()).flatten()
    });
    Pid::from_raw(heart.unwrap()).unwrap()
}

#[test]
fn a_heartbeat_notices_when_programs_stand_still() {
    let cgroup = tempfile::tempdir().unwrap();
    let agent = agent_in_cgroup(cgroup.path());
    barrier(&agent);
    thread::sleep(Duration::from_millis(200));
    kill_process(heart(), Signal::STOP).unwrap();
    thread::sleep(Duration::from_millis(300));
    kill_process(heart(), Signal::CONT).unwrap();
    match Host::ask(&agent, Request::HeartbeatStop).next() {
        Some(Reply::Gap { longest_us, beats }) => {
            assert!(longest_us >= 290_000, "{longest_us}");
            assert!(beats > 20, "{beats}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(Host::ask(&agent, Request::HeartbeatStop).next(), Some(Reply::Failed(_))));
}

#[test]
fn a_heart_that_was_stopped_keeps_no_fork_from_its_barrier() {
    let cgroup = tempfile::tempdir().unwrap();
    let agent = agent_in_cgroup(cgroup.path());
    barrier(&agent);
    kill_process(heart(), Signal::STOP).unwrap();
    barrier(&agent); // It goes on.

    let stopped = heart();
    kill_process(stopped, Signal::STOP).unwrap();
    assert!(matches!(Host::ask(&agent, Request::HeartbeatStop).next(), Some(Reply::Failed(_))));
    barrier(&agent);
    assert_ne!(heart(), stopped, "one that does not answer is replaced");
    assert!(matches!(Host::ask(&agent, Request::HeartbeatStop).next(), Some(Reply::Gap { .. })));
}

#[test]
fn a_helper_that_was_stopped_while_it_waited_becomes_a_program_all_the_same() {
    let agent = agent();
    launch::prepare(&agent);
    kill_process(launch::waiting(&agent).unwrap(), Signal::STOP).unwrap();
    assert_eq!(Host::exec(&agent, sh("exit 7")).rest().2, Some(Reply::Exited(Exit::Code(7))));
}

#[test]
fn a_heartbeat_that_sees_nothing_new_calms_down() {
    let cgroup = tempfile::tempdir().unwrap();
    let agent = agent_in_cgroup(cgroup.path());
    barrier(&agent);
    thread::sleep(Duration::from_secs(2));
    match Host::ask(&agent, Request::HeartbeatStop).next() {
        Some(Reply::Gap { beats, .. }) => assert!((50..1000).contains(&beats), "{beats} beats in 2 s"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_next_program_is_made_from_the_helper_that_waits() {
    let agent = agent();
    launch::prepare(&agent);
    for _ in 0..3 {
        let mut waiting = None;
        wait_until("a helper waits", || {
            waiting = launch::waiting(&agent);
            waiting.is_some()
        });
        let host = Host::ask(&agent, Request::Exec(sh("exit 7")));
        let pid = waiting.unwrap().as_raw_nonzero().get().unsigned_abs();
        assert_eq!(host.next(), Some(Reply::Started { pid }));
        assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Code(7))));
    }
}

#[test]
fn a_helper_that_was_ended_while_it_waited_is_replaced() {
    let agent = agent();
    launch::prepare(&agent);
    let waiting = launch::waiting(&agent).unwrap();
    kill_process(waiting, Signal::KILL).unwrap();
    wait_until("its end is known", || !Path::new(&format!("/proc/{}", waiting.as_raw_nonzero())).exists());
    thread::sleep(Duration::from_millis(50)); // To the agent, too.
    let (_, _, last) = Host::exec(&agent, sh("exit 7")).rest();
    assert_eq!(last, Some(Reply::Exited(Exit::Code(7))));
}

#[test]
fn the_connection_over_the_limit_is_told_so_and_a_freed_place_is_taken_again() {
    let agent = agent();
    let into = tempfile::tempdir().unwrap();
    // Each waits for an archive.
    let put = || Request::Put { path: into.path().display().to_string() };
    let mut held: Vec<_> = (0..server::MAX_CONNECTIONS).map(|_| Host::ask(&agent, put())).collect();
    let is_refused = |agent: &Arc<Agent>| match Host::ask(agent, Request::Ping).next() {
        Some(Reply::Failed(failure)) => failure.message == "the agent serves 256 connections already",
        other => matches!(other, Some(Reply::Pong { .. })).then_some(false).unwrap(),
    };
    // A ping may overtake one of them and take its place for a moment: then that one is refused, and the next gets it.
    wait_until("all places are taken", || {
        let refused = is_refused(&agent);
        if !refused {
            held.push(Host::ask(&agent, put()));
        }
        refused
    });
    drop(held);
    wait_until("a free place", || matches!(Host::ask(&agent, Request::Ping).next(), Some(Reply::Pong { .. })));
}

#[test]
fn more_who_say_nothing_than_can_want_something_are_told_so() {
    let agent = agent();
    let silent = || {
        let (host, guest) = UnixStream::pair().unwrap();
        server::admit(&agent, guest.into());
        host
    };
    let held: Vec<_> = (0..server::MAX_ARRIVING).map(|_| silent()).collect();
    let host = silent();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let refused: Option<Reply> = frame::read(&mut &host).unwrap();
    assert!(matches!(refused, Some(Reply::Failed(_))), "{refused:?}");
    drop(held);
    wait_until("a free place", || matches!(Host::ask(&agent, Request::Ping).next(), Some(Reply::Pong { .. })));
}

#[test]
fn nonsense_is_answered_and_ends_the_connection() {
    let (host, guest) = UnixStream::pair().unwrap();
    server::admit(&agent(), guest.into());
    (&host).write_all(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
    let answer: Option<Reply> = frame::read(&mut &host).unwrap();
    assert!(matches!(answer, Some(Reply::Failed(_))), "{answer:?}");
}

#[test]
fn a_guest_that_cannot_freeze_says_so_instead_of_letting_a_fork_through() {
    assert!(matches!(Host::ask(&agent(), Request::ForkBarrier).next(), Some(Reply::Failed(_))));
}

/// A cgroup that is a plain directory: everything in it is frozen at once.
fn in_cgroup(cgroup: &Path) -> PathBuf {
    fs::write(cgroup.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    cgroup.to_owned()
}

fn agent_in_cgroup(cgroup: &Path) -> Arc<Agent> {
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_pando-agent"));
    Arc::new(Agent::new(reaper(), helper, Some(in_cgroup(cgroup)), "/".into()))
}

fn frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.freeze")).unwrap() == "1"
}

#[test]
fn programs_stand_still_from_the_answer_until_the_host_ends_the_barrier() {
    let cgroup = tempfile::tempdir().unwrap();
    let host = Host::ask(&agent_in_cgroup(cgroup.path()), Request::ForkBarrier);
    assert_eq!(host.next(), Some(Reply::Done));
    thread::sleep(Duration::from_millis(100));
    assert!(frozen(cgroup.path()));
    let ended = Instant::now();
    drop(host);
    wait_until("the thaw", || !frozen(cgroup.path()));
    assert!(ended.elapsed() < Duration::from_millis(200), "the parent waited for a reseed that is not coming");
}

/// The barrier of an agent that becomes a child: its connection is reset once programs stand still.
fn torn_barrier(agent: &Arc<Agent>, cgroup: &Path) {
    let host = Host::ask(agent, Request::ForkBarrier);
    wait_until("the freeze", || cgroup.join("cgroup.freeze").exists());
    thread::sleep(Duration::from_millis(50));
    drop(host); // With the answer unread, which resets the connection.
}

#[test]
fn a_child_stands_still_until_it_has_random_numbers_of_its_own_and_says_whether_it_did() {
    let (root, cgroup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let agent = Arc::new(Agent::new(
        reaper(),
        PathBuf::from(env!("CARGO_BIN_EXE_pando-agent")),
        Some(in_cgroup(cgroup.path())),
        root.path().to_owned(),
    ));
    torn_barrier(&agent, cgroup.path());
    thread::sleep(Duration::from_millis(500));
    assert!(frozen(cgroup.path()), "programs run with their parent's random numbers");
    if pando_sys::reseed(&[]).is_err() {
        return eprintln!("skipped: a host's seed needs CAP_SYS_ADMIN");
    }
    assert_eq!(adopt(&agent, Identity::default()), (true, None));
    assert!(!frozen(cgroup.path()));

    // Without a barrier nothing stood still, whatever was true of an earlier fork.
    assert_eq!(adopt(&agent, Identity::default()), (false, None));
}

#[test]
fn a_child_that_nobody_gives_random_numbers_does_not_stand_still_for_ever() {
    let cgroup = tempfile::tempdir().unwrap();
    torn_barrier(&agent_in_cgroup(cgroup.path()), cgroup.path());
    let began = Instant::now();
    thread::sleep(Duration::from_millis(RESEED_LIMIT_MS / 2));
    assert!(frozen(cgroup.path()));
    while frozen(cgroup.path()) {
        assert!(began.elapsed() < 4 * Duration::from_millis(RESEED_LIMIT_MS), "programs stand still for ever");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A child of a fork of fifty begins to run long after its parent stood still, and its clock went on meanwhile. A
/// barrier that had given up over that let programs go on with their parent's random numbers.
#[test]
fn a_child_that_begins_to_run_late_stands_still_all_the_same() {
    let cgroup = tempfile::tempdir().unwrap();
    let host = Host::ask(&agent_in_cgroup(cgroup.path()), Request::ForkBarrier);
    wait_until("the freeze", || cgroup.path().join("cgroup.freeze").exists());
    thread::sleep(Duration::from_millis(50));

    let away = 2 * Duration::from_millis(BARRIER_LIMIT_MS + BARRIER_NOTICE_MS);
    let began = Instant::now();
    let script = format!("kill -STOP {0}; sleep {1}; kill -CONT {0}", std::process::id(), away.as_secs());
    let mut stop = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
    wait_until("this process stood still", || began.elapsed() >= away);
    thread::sleep(Duration::from_millis(BARRIER_NOTICE_MS + 500)); // It has seen the time by now, and given its notice.
    assert!(frozen(cgroup.path()), "the time that it was away ended the barrier");
    drop(host);
    thread::sleep(Duration::from_millis(500));
    assert!(frozen(cgroup.path()), "programs run with their parent's random numbers");
    let _ = stop.wait(); // The reaper may have been first.
}

#[test]
fn a_barrier_that_nobody_ends_says_so_and_ends_itself() {
    let cgroup = tempfile::tempdir().unwrap();
    let host = Host::ask(&agent_in_cgroup(cgroup.path()), Request::ForkBarrier);
    assert_eq!(host.next(), Some(Reply::Done));
    assert!(matches!(host.next(), Some(Reply::Failed(_))));
    assert!(frozen(cgroup.path()), "the host hears of it before programs go on");
    wait_until("the thaw", || !frozen(cgroup.path()));
    assert_eq!(host.next(), None);
}

#[test]
fn a_program_enters_the_cgroup_before_it_runs() {
    let cgroup = tempfile::tempdir().unwrap();
    let script = format!("cat {}/cgroup.procs", cgroup.path().display());
    let (stdout, ..) = Host::exec(&agent_in_cgroup(cgroup.path()), sh(&script)).rest();
    assert_eq!(text(&stdout), "0");
}

/// An image with SSH host keys of these types, and who it is.
fn image_with_host_keys(kinds: &[&str]) -> (tempfile::TempDir, Arc<Agent>) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/ssh")).unwrap();
    for kind in kinds {
        fs::write(host_key(root.path(), kind), "its parent's").unwrap();
        fs::write(host_key(root.path(), kind).with_extension("pub"), "its parent's").unwrap();
    }
    let agent = agent_in(root.path());
    (root, agent)
}

fn host_key(root: &Path, kind: &str) -> PathBuf {
    root.join(format!("etc/ssh/ssh_host_{kind}_key"))
}

fn named(name: &str) -> Identity {
    Identity { name: name.into(), ..Identity::default() }
}

fn has_keygen() -> bool {
    let is_there = Command::new("ssh-keygen").arg("-?").output().is_ok();
    if !is_there {
        eprintln!("skipped: there is no ssh-keygen");
    }
    is_there
}

#[test]
fn a_twin_has_host_keys_of_its_own_before_its_hooks_run_and_its_server_reads_them() {
    if !has_keygen() {
        return;
    }
    let (root, agent) = image_with_host_keys(&["ed25519", "ecdsa", "rsa"]);
    let hooks = root.path().join("etc/pando/fork.d");
    fs::create_dir_all(&hooks).unwrap();
    let seen = root.path().join("seen-by-a-hook");
    let hook = hooks.join("keys");
    fs::write(&hook, format!("#!/bin/sh\ncp {} {}\n", host_key(root.path(), "ed25519").display(), seen.display()))
        .unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    // A server, as far as a hang-up goes.
    let (server, hung_up) = (root.path().join("sshd"), root.path().join("hung-up"));
    let script = format!(
        "#!/bin/sh\ntrap 'echo >{}; exit' HUP\necho $$ >{}/run/sshd.pid\nwhile :; do sleep 0.05; done\n",
        hung_up.display(),
        root.path().display()
    );
    fs::create_dir_all(root.path().join("run")).unwrap();
    fs::write(&server, script).unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    let host = Host::exec(&agent, Exec { argv: vec![server.to_str().unwrap().into()], ..Exec::default() });
    wait_until("the server's start", || {
        fs::read_to_string(root.path().join("run/sshd.pid")).is_ok_and(|pid| pid.ends_with('\n'))
    });

    assert_eq!(adopt(&agent, named("twin")).1, None);
    wait_until("the hang-up", || hung_up.exists());
    drop(host);
    let read = |kind: &str| fs::read_to_string(host_key(root.path(), kind)).unwrap();
    for kind in ["ed25519", "ecdsa"] {
        assert!(read(kind).starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"), "{kind}");
        assert_eq!(fs::metadata(host_key(root.path(), kind)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(host_key(root.path(), kind).with_extension("pub")).unwrap().contains(kind));
    }
    assert!(!host_key(root.path(), "rsa").exists() && !host_key(root.path(), "rsa").with_extension("pub").exists());
    assert_eq!(fs::read_to_string(seen).unwrap(), read("ed25519"));
    assert_eq!(fs::read_dir(root.path().join("etc/ssh")).unwrap().count(), 4, "something was left behind");

    // One that only slept, and is who it was, keeps them; another twin has others.
    let before = read("ed25519");
    assert_eq!(adopt(&agent, named("twin")).1, None);
    assert_eq!(read("ed25519"), before);
    assert_eq!(adopt(&agent, named("other")).1, None);
    assert_ne!(read("ed25519"), before);
}

#[test]
fn a_number_that_a_server_left_behind_hangs_up_on_nobody_else() {
    if !has_keygen() {
        return;
    }
    let (root, agent) = image_with_host_keys(&["ed25519"]);
    let host = Host::exec(&agent, sh("echo $$; exec sleep 3; exit 1"));
    let pid = host.until("\n");
    fs::create_dir_all(root.path().join("run")).unwrap();
    fs::write(root.path().join("run/sshd.pid"), pid).unwrap();
    assert_eq!(adopt(&agent, named("twin")).1, None);
    assert_eq!(host.rest().2, Some(Reply::Exited(Exit::Code(0))));
}

#[test]
fn an_only_rsa_key_is_renewed_also() {
    if !has_keygen() {
        return;
    }
    let (root, agent) = image_with_host_keys(&["rsa"]);
    assert_eq!(adopt(&agent, named("twin")).1, None);
    assert!(fs::read_to_string(host_key(root.path(), "rsa")).unwrap().contains("PRIVATE KEY"));
}

#[test]
fn host_keys_that_cannot_be_renewed_are_told_and_stay() {
    let (root, agent) = image_with_host_keys(&["ed25519", "rsa"]);
    let empty = tempfile::tempdir().unwrap();
    let env = BTreeMap::from([("PATH".into(), empty.path().to_str().unwrap().into())]);
    let failure = adopt(&agent, Identity { env, ..named("twin") }).1.unwrap();
    assert!(failure.message.contains("ssh_host_ed25519_key") && failure.message.contains("ssh-keygen"), "{failure:?}");
    assert!(host_key(root.path(), "ed25519").exists() && host_key(root.path(), "rsa").exists());
}
