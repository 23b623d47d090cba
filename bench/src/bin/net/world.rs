//! Where guests send to: a network namespace beside the host, with nothing behind it.

use pando_sys::enter_network;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Its address, of a network that is for documentation.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The host's address there.
const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The host's end of the way there.
const LINK: &str = "benchworld0";
/// Until a guest that boots in an emulated host has begun to send.
const LIMIT: Duration = Duration::from_secs(240);

/// The namespace. It goes with this, and with the last listener in it.
pub(crate) struct World {
    name: String,
}

impl World {
    /// Makes it. It takes root, and `ip`.
    pub(crate) fn make() -> io::Result<Self> {
        let name = format!("bench{}", std::process::id());
        let world = Self { name: name.clone() };
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {LINK} type veth peer name out netns {name}"))?;
        ip(&format!("addr add {HOST}/24 dev {LINK}"))?;
        ip(&format!("link set {LINK} up"))?;
        ip(&format!("-n {name} addr add {WORLD}/24 dev out"))?;
        ip(&format!("-n {name} link set out up"))?;
        Ok(world)
    }

    /// Listens there.
    pub(crate) fn listen(&self, port: u16) -> io::Result<Sink> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        // A thread of its own, as it stays there.
        let bound = thread::spawn(move || {
            enter_network(namespace.as_fd()).map_err(io::Error::other)?;
            TcpListener::bind((WORLD, port))
        });
        let listener = bound.join().map_err(|_| io::Error::other("a thread panicked"))??;
        listener.set_nonblocking(true)?;
        Ok(Sink(listener))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What does not go now goes with the emulated host.
        let _ = ip(&format!("link del {LINK}"));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// Reads what it is sent.
pub(crate) struct Sink(TcpListener);

impl Sink {
    /// The next connection, to its end: bytes a second from its beginning on, and bytes.
    pub(crate) fn take(&self) -> io::Result<(u64, u64)> {
        let mut stream = self.accept()?;
        let (begun, mut len, mut buffer) = (Instant::now(), 0_u64, vec![0; 1 << 18]);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(((len as f64 / begun.elapsed().as_secs_f64()) as u64, len)),
                read => len += read as u64,
            }
        }
    }

    /// Waits for whom it is to read from: a guest that never comes must not keep a benchmark.
    fn accept(&self) -> io::Result<TcpStream> {
        let begun = Instant::now();
        loop {
            match self.0.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if begun.elapsed() > LIMIT => return Err(io::Error::other("nobody sends")),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Runs `ip`.
fn ip(arguments: &str) -> io::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}
