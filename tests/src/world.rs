//! What guests with a network reach in tests: a network namespace beside the host, and nothing behind it.
//!
//! ```text
//! guest ── VM's namespace ── host 198.51.100.2 ── world 198.51.100.1
//!                                                       169.254.169.254
//! ```

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The world's address, of a network that is for documentation.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The host's address there.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// What clouds tell their machines at, keys included.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The host's end of the way there.
const LINK: &str = "world0";

/// The namespace. It goes with this.
#[derive(Debug)]
pub struct World {
    name: String,
}

impl World {
    /// Makes it, with the host's default route by it.
    ///
    /// # Panics
    ///
    /// When it cannot: it takes root, and `ip`.
    pub fn make() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("world{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let world = Self { name: name.clone() };
        ip(&["netns", "add", &name]);
        ip(&["link", "add", LINK, "type", "veth", "peer", "name", "out", "netns", &name]);
        ip(&["addr", "add", &format!("{HOST}/24"), "dev", LINK]);
        ip(&["link", "set", LINK, "up"]);
        for address in [format!("{WORLD}/24"), format!("{METADATA}/32")] {
            ip(&["-n", &name, "addr", "add", &address, "dev", "out"]);
        }
        for device in ["lo", "out"] {
            ip(&["-n", &name, "link", "set", device, "up"]);
        }
        ip(&["route", "add", &format!("{METADATA}/32"), "dev", LINK]);
        world
    }

    /// An echo server in it.
    pub fn echo(&self, address: SocketAddr) -> Echo {
        Echo::start(address, Some(self.namespace()))
    }

    /// A server in it that is a new `command` for each connection, which it has as its standard input and output.
    pub fn serve(&self, address: SocketAddr, command: impl Fn() -> Command + Send + 'static) {
        let serve = move |stream: TcpStream| {
            let output = stream.try_clone().expect("another descriptor of a connection");
            let child = command().stdin(OwnedFd::from(stream)).stdout(OwnedFd::from(output)).spawn();
            let mut child = child.expect("a server's program");
            thread::spawn(move || child.wait());
        };
        listen(address, Some(self.namespace()), serve);
    }

    fn namespace(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).expect("the namespace")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Servers are still in it, and keep it until the test's process ends. The host's addresses and routes go with the link.
        let _ = Command::new("ip").args(["link", "del", LINK]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Greets every connection with `hello` and its address, and then sends each line back.
#[derive(Debug)]
pub struct Echo {
    connections: Arc<Mutex<Vec<Heard>>>,
}

/// A connection, as the server sees it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// From where.
    pub from: SocketAddr,
    /// How many lines it sent.
    pub lines: u64,
    /// Whether it has ended, in whatever way.
    pub has_ended: bool,
}

impl Echo {
    /// One of the host itself.
    pub fn on_host(address: SocketAddr) -> Self {
        Self::start(address, None)
    }

    fn start(address: SocketAddr, namespace: Option<File>) -> Self {
        let connections: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let heard = Arc::clone(&connections);
        listen(address, namespace, move |stream| {
            let heard = Arc::clone(&heard);
            thread::spawn(move || serve(&stream, &heard));
        });
        Self { connections }
    }

    /// Every connection that there ever was, oldest first.
    pub fn heard(&self) -> Vec<Heard> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Gives every connection to `take`, in a thread that is in this namespace.
fn listen(address: SocketAddr, namespace: Option<File>, take: impl Fn(TcpStream) + Send + 'static) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || {
        if let Some(namespace) = namespace {
            // Of this thread, and what it opens and starts.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter it");
        }
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("listen on {address}: {error}"));
        ready.send(()).expect("the test waits");
        listener.incoming().flatten().for_each(take);
    });
    is_ready.recv().expect("it listens");
}

fn serve(stream: &TcpStream, heard: &Mutex<Vec<Heard>>) {
    let Ok(from) = stream.peer_addr() else { return };
    let with = |index: usize, change: fn(&mut Heard)| {
        change(&mut heard.lock().unwrap_or_else(PoisonError::into_inner)[index]);
    };
    let index = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push(Heard { from, lines: 0, has_ended: false });
        heard.len() - 1
    };
    let mut to = stream;
    if writeln!(to, "hello {}", from.ip()).is_ok() {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            with(index, |it| it.lines += 1);
            if writeln!(to, "{line}").is_err() {
                break;
            }
        }
    }
    with(index, |it| it.has_ended = true);
}

/// Runs `ip`.
///
/// # Panics
///
/// When it fails.
pub fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip, of iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
