//! A host and an internet, both network namespaces that nobody else sees, with no way out.

use pando_daemon::network::{Cidr, Networks};
use pando_sys::{current_network, enter_network, new_network};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The internet's address, in a network that is for documentation.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The host's address there.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Others on the internet.
pub(crate) const ONE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const OWNER: &str = "0197-test-owner";

/// Runs `test` on a host of its own; says why when it cannot.
pub(crate) fn on_a_host(test: impl FnOnce() + Send + 'static) {
    if let Some(lack) = pando_sys::network_lack() {
        return eprintln!("skipped: {lack}");
    }
    let host = thread::spawn(|| {
        new_network().unwrap();
        ip("link set lo up");
        test();
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Adds an internet to the present host: it answers on some ports, and knows of no address but the host's.
pub(crate) fn internet() -> OwnedFd {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        new_network().unwrap();
        ip("link set lo up");
        sender.send(current_network().unwrap()).unwrap();
    });
    let internet = receiver.recv().unwrap();
    let (pid, fd) = (std::process::id(), internet.as_raw_fd());
    ip(&format!("link add wan0 type veth peer name wan1 netns /proc/{pid}/fd/{fd}"));
    ip(&format!("addr add {HOST}/24 dev wan0"));
    ip("link set wan0 up");
    ip(&format!("route add default via {INTERNET}"));
    inside(&internet, || {
        ip(&format!("addr add {INTERNET}/24 dev wan1"));
        ip(&format!("addr add {ONE}/32 dev lo"));
        ip(&format!("addr add {OTHER}/32 dev lo"));
        ip("link set wan1 up");
        serve();
    });
    internet
}

/// Answers on TCP port 80 and UDP port 7, and 53.
fn serve() {
    let listener = TcpListener::bind("0.0.0.0:80").unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut question = [0; 64];
                let len = stream.read(&mut question).unwrap();
                let from = stream.peer_addr().unwrap().ip();
                let question = String::from_utf8_lossy(&question[..len]);
                thread::sleep(Duration::from_millis(50)); // All are connected at once.
                write!(stream, "{question} from {from}").unwrap();
            });
        }
    });
    // A socket of all addresses would answer from the first.
    for address in [(INTERNET, 7), (INTERNET, 53), (ONE, 7), (OTHER, 7)] {
        answer(address);
    }
}

/// Answers with what it is sent, in the present namespace.
pub(crate) fn answer(address: (Ipv4Addr, u16)) {
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
}

/// Runs `work` in a namespace.
pub(crate) fn inside<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let work = || {
            enter_network(namespace.as_fd()).unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}

/// Runs `ip` in the present namespace.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How many links on the present host are ends of networks.
pub(crate) fn links() -> usize {
    ip("-o link show").lines().filter(|line| line.contains("pando")).count()
}

/// What is left of networks on the present host.
pub(crate) fn left() -> String {
    let links = ip("-o link show").lines().filter(|line| line.contains("pando")).collect::<Vec<_>>().join("\n");
    let routes =
        ip("-4 route show table all").lines().filter(|line| line.contains("10.241.")).collect::<Vec<_>>().join("\n");
    let rules = run("nft", "list tables");
    links + &routes + &rules
}

/// Waits for what is sure to come.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not come: {}", left());
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn range() -> Cidr {
    "10.241.0.0/16".parse().unwrap()
}

pub(crate) fn networks() -> Networks {
    Networks::with_name_server(OWNER, range(), Some(INTERNET))
}

/// Runs `work` to its end in this thread, whose namespace it stays in.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
