//! An agent, its barrier and its connections: in process and network namespaces of the test's own, as it looks for
//! connections in all that it finds.

use super::{set_up, testing::Machine};
use crate::{Agent, peer::Peer, reaper::Reaper, twins};
use pando_wire::{agent::SEED, network::Network};
use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

/// Set in the process that is alone.
const ALONE: &str = "PANDO_TEST_IS_ALONE";

/// Whether this process has namespaces of its own. If not, runs the test of this name in one that has.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let unshared = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]).args(words);
        command
    };
    if !unshared(&["true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs root");
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = unshared(&[program.to_str().unwrap(), "--exact", test, "--nocapture"]);
    let output = command.env(ALONE, "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// A guest with a connection to the outside and one inside.
struct Guest {
    agent: Agent,
    cgroup: tempfile::TempDir,
    outside: (TcpStream, TcpStream),
    inside: (TcpStream, TcpStream),
}

impl Guest {
    fn new(on_network: bool) -> Self {
        let (own, far) = (Machine::own(), Machine::new().unwrap());
        own.wire("wire0", pando_wire::network::MAC, &far, "tap0");
        far.address("tap0", Network::GUEST.gateway, 30);
        let root = tempfile::tempdir().unwrap();
        assert_eq!(set_up(root.path(), &Network::GUEST), Vec::<String>::new());
        let listener = far.within(|| TcpListener::bind((Network::GUEST.gateway, 0)).unwrap());
        let connected = |listener: &TcpListener| {
            (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0)
        };
        let outside = connected(&listener);
        let inside = connected(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        // The namespace stays with its sockets. As no process lives there, it is none of this machine's.
        drop(far);
        let cgroup = tempfile::tempdir().unwrap();
        fs::write(cgroup.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        let agent =
            Agent::new(Reaper::start().unwrap(), "/no/helper".into(), Some(cgroup.path().into()), PathBuf::from("/"));
        let agent = if on_network { agent.on_network() } else { agent };
        Self { agent, cgroup, outside, inside }
    }

    /// A barrier that ends as `end` has the host's end of its connection end. Whether programs stood still at its end.
    fn barrier(&self, end: impl FnOnce(UnixStream, &Agent)) {
        let (host, guest) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let peer = Peer::new(OwnedFd::from(guest));
            let serving = scope.spawn(move || twins::serve(&self.agent, &peer));
            let mut first = [0; 1];
            (&host).read_exact(&mut first).unwrap(); // It stands; the rest of `Done` is left unread.
            assert_eq!(fs::read_to_string(self.cgroup.path().join("cgroup.freeze")).unwrap(), "1");
            end(host, &self.agent);
            serving.join().unwrap().unwrap();
        });
    }

    fn is_whole((near, far): &(TcpStream, TcpStream)) -> bool {
        for end in [near, far] {
            end.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        let mut got = [0; 3];
        (&mut &*far).write_all(b"abc").and_then(|()| (&mut &*near).read_exact(&mut got)).is_ok()
    }

    fn has_lost_the_outside(&self) -> bool {
        assert!(Self::is_whole(&self.inside), "a connection inside was torn");
        let torn = self.outside.0.take_error().unwrap();
        assert!(torn.as_ref().is_none_or(|error| error.kind() == io::ErrorKind::ConnectionAborted), "{torn:?}");
        let is_lost = torn.is_some();
        assert!(is_lost || Self::is_whole(&self.outside));
        is_lost
    }
}

/// What a child sees: the rest of what it said is lost, and its connection is reset.
fn torn(host: UnixStream, agent: &Agent) {
    drop(host);
    twins::reseed(agent, &[7; SEED]);
}

#[test]
fn a_parent_keeps_its_connections_and_a_child_loses_those_to_the_outside() {
    if !is_alone("network::tests::a_parent_keeps_its_connections_and_a_child_loses_those_to_the_outside") {
        return;
    }
    let guest = Guest::new(true);
    guest.barrier(|mut host, _| {
        host.shutdown(std::net::Shutdown::Write).unwrap();
        io::copy(&mut host, &mut io::sink()).ok();
    });
    assert!(!guest.has_lost_the_outside());
    guest.barrier(torn);
    assert!(guest.has_lost_the_outside());
}

#[test]
fn a_child_of_a_fork_without_a_barrier_loses_its_connections_when_it_takes_on_its_name() {
    if !is_alone("network::tests::a_child_of_a_fork_without_a_barrier_loses_its_connections_when_it_takes_on_its_name")
    {
        return;
    }
    let guest = Guest::new(true);
    twins::reseed(&guest.agent, &[7; SEED]);
    assert!(guest.has_lost_the_outside());
}

#[test]
fn what_was_begun_behind_the_barrier_is_not_ended_when_a_child_takes_on_its_name() {
    if !is_alone("network::tests::what_was_begun_behind_the_barrier_is_not_ended_when_a_child_takes_on_its_name") {
        return;
    }
    let guest = Guest::new(true);
    // Its kernel reseeded by itself, and the host's word came later.
    *crate::agent::lock(&guest.agent.barrier) = crate::agent::Before { reseeded: true, disconnected: true };
    assert!(twins::reseed(&guest.agent, &[7; SEED]));
    assert!(!guest.has_lost_the_outside());
}

#[test]
fn a_machine_without_a_network_device_looks_for_no_connections() {
    if !is_alone("network::tests::a_machine_without_a_network_device_looks_for_no_connections") {
        return;
    }
    let guest = Guest::new(false);
    guest.barrier(torn);
    twins::reseed(&guest.agent, &[7; SEED]);
    assert!(!guest.has_lost_the_outside());
}
