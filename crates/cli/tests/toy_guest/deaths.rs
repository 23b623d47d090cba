//! Somebody dies in the middle of a fork, or does not behave; the others live.

use crate::instant::{boot, wait_for_laps};
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Monitor, MonitorError, Toy, Witness};
use pando_wire::control::{Connection, Fork, Listener, Origin, Phase, Request, Response, Start, Status};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WITNESS: Witness = Witness { vcpus: 2, pages: 8, records: 4 };
/// As many as one fork makes, so that the seed lives for a while.
const MANY: usize = 250;

/// A fork that was asked for, with nothing done for its children yet.
struct Pending {
    dir: TempDir,
    connection: Connection,
}

impl Pending {
    fn ask(parent: &Monitor) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners: Vec<_> =
            (0..MANY).map(|child| Listener::bind(&dir.path().join(child.to_string())).unwrap()).collect();
        let fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
        let connection = connect(&parent.dir().join("control")).unwrap();
        connection.send(&Request::Fork(Fork { children: MANY as u32 }), &fds).unwrap();
        Self { dir, connection }
    }

    fn path(&self, child: usize) -> PathBuf {
        self.dir.path().join(child.to_string())
    }

    /// Which children there are, by their process ids. Those that are not refuse or close the connection.
    fn born(&self) -> Vec<u32> {
        let status = |child| match ask(&self.path(child), &Request::Status) {
            Some(Response::Status(Status { pid, phase: Phase::Created, .. })) => Some(pid),
            None => None,
            other => panic!("{other:?}"),
        };
        (0..MANY).filter_map(status).collect()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for child in 0..MANY {
            let _ = ask(&self.path(child), &Request::Kill);
        }
    }
}

fn connect(path: &Path) -> Option<Connection> {
    let connection = Connection::connect(path).ok()?;
    set_socket_timeout(&connection, Timeout::Recv, Some(LIMIT)).unwrap();
    Some(connection)
}

/// `None` when there is nobody, or nobody any more.
fn ask(path: &Path, request: &Request) -> Option<Response> {
    let connection = connect(path)?;
    connection.send(request, &[]).ok()?;
    match connection.receive() {
        Ok(answer) => answer.map(|(response, _)| response),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CONNRESET.raw_os_error()) => None,
        Err(error) => panic!("{error}: it neither answers nor ends"),
    }
}

fn children_of(pid: u32) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn kill(pid: Pid) {
    // It may have ended by itself.
    let _ = kill_process(pid, Signal::KILL);
}

#[test]
fn a_seed_that_is_killed_leaves_the_children_that_it_made_and_its_parent() {
    let Some(parent) = boot(WITNESS) else { return };
    let pid = parent.pid().unwrap();
    let mut cut_short = 0;
    for _ in 0..4 {
        let fork = Pending::ask(&parent);
        let seed = wait_for("a seed", || children_of(pid).pop());
        thread::sleep(Duration::from_millis(5));
        kill(seed);
        assert!(matches!(fork.connection.receive(), Ok(Some((Response::Forked(_), _)))), "it was forked");
        wait_for("the seed is reaped", || children_of(pid).is_empty().then_some(()));
        cut_short += usize::from(fork.born().len() < MANY);
    }
    assert!(cut_short > 0, "every seed was quicker than this test");
    wait_for_laps(&parent, WITNESS, 2, LIMIT);
    let (_, children) = parent.fork(1).unwrap();
    wait_for_laps(&children[0].monitor, WITNESS, 6, LIMIT);
}

#[test]
fn a_parent_that_is_killed_when_there_is_a_seed_has_all_its_children() {
    let Some(parent) = boot(WITNESS) else { return };
    let pid = parent.pid().unwrap();
    let fork = Pending::ask(&parent);
    wait_for("a seed", || children_of(pid).pop());
    kill(Pid::from_raw(pid as i32).unwrap());
    assert_eq!(fork.born().len(), MANY);
}

#[test]
fn a_child_that_is_killed_or_refuses_its_files_ends_and_hurts_nobody() {
    let Some(parent) = boot(WITNESS) else { return };
    let fork = Pending::ask(&parent);
    assert!(matches!(fork.connection.receive(), Ok(Some((Response::Forked(_), _)))));
    let born = fork.born();
    assert_eq!(born.len(), MANY);

    kill(Pid::from_raw(born[0] as i32).unwrap());
    wait_for("the killed one is gone", || ask(&fork.path(0), &Request::Status).is_none().then_some(()));

    // Files that are too few change nothing, so the child is there for another attempt.
    let start = |inherited_layers| {
        let (origin, layer, network) = (Origin::Fork, String::new(), None);
        Request::Start(Start { origin, generation: [9; 16], inherited_layers, layer, network })
    };
    assert!(matches!(ask(&fork.path(1), &start(1)), Some(Response::Refused(_))));
    assert!(matches!(ask(&fork.path(1), &Request::Status), Some(Response::Status(_))));

    // Files that are not its parent's are noticed when what it inherited is used up: it ends, and says why.
    let connection = connect(&fork.path(1)).unwrap();
    let scratch = |name: &str| {
        let path = fork.dir.path().join(name);
        fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    };
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let vsock = std::os::unix::net::UnixListener::bind(fork.dir.path().join("vsock")).unwrap();
    let (console, base, layer) = (scratch("console"), scratch("empty"), scratch("empty"));
    let (data, journal) = (scratch("data"), scratch("journal"));
    let fds = [kvm.as_fd(), console.as_fd(), vsock.as_fd(), base.as_fd(), layer.as_fd(), data.as_fd(), journal.as_fd()];
    connection.send(&start(1), &fds).unwrap();
    let answer = connection.receive::<Response>().unwrap();
    assert!(matches!(&answer, Some((Response::Refused(why), _)) if why[0] == "cannot open the disk"), "{answer:?}");
    wait_for("it is gone", || ask(&fork.path(1), &Request::Status).is_none().then_some(()));

    assert_eq!(fork.born().len(), MANY - 2, "its siblings are there");
    wait_for_laps(&parent, WITNESS, 2, LIMIT);
}

#[test]
fn a_vm_lives_on_when_its_monitor_has_no_descriptor_left() {
    if !needs_kvm() {
        return;
    }
    let monitor = Monitor::boot(PANDO.as_ref(), &Toy::walking(1), MEMORY).unwrap();
    let pid = monitor.pid().unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let few = Rlimit { current: Some(open + 8), maximum: Some(open + 8) };
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, few).unwrap();

    let control = monitor.dir().join("control");
    let silent: Vec<_> = (0..50).map(|_| connect(&control).unwrap()).collect();
    assert_eq!(monitor.pid().unwrap(), pid, "who asks is heard, also among many that do not");
    drop(silent);
    let before = monitor.console().unwrap().len();
    monitor.console_of(before + 2, LIMIT).unwrap();
}

#[test]
fn a_peer_that_does_not_read_its_answers_stops_nobody() {
    if !needs_kvm() {
        return;
    }
    let monitor = Monitor::boot(PANDO.as_ref(), &Toy::walking(1), MEMORY).unwrap();
    let deaf = connect(&monitor.dir().join("control")).unwrap();
    rustix::io::ioctl_fionbio(&deaf, true).unwrap();
    let mut refused = 0;
    while refused < 100 {
        match deaf.send(&Request::Status, &[]) {
            Ok(()) => (),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                refused += 1;
                thread::sleep(Duration::from_millis(1));
            }
            Err(_) => break, // It was sent away.
        }
    }
    let answer = monitor.ask(&Request::Status);
    assert!(matches!(answer, Ok(Response::Status(_))), "{answer:?}");
    assert!(!matches!(answer, Err(MonitorError::Host(_))));
}
