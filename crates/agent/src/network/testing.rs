//! Machines of tests: network namespaces with wires between them, and no way out. They need root.

use super::{
    interface::bring_up_loopback,
    namespaces::Namespace,
    netlink::{CREATE, Message, REPLACE, Socket, attributes},
};
use std::{
    fs, io,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const EXCLUSIVE: u16 = 0x200;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETLINK: u16 = 18;

/// A network namespace with a process in it.
pub(crate) struct Machine(Option<Child>);

impl Machine {
    /// Nothing where tests may not make one: that is said.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let child = Command::new("unshare").args(["--net", "sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        let machine = Self(Some(child));
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(machine.path()).is_ok_and(|its| its == own) {
            assert!(Instant::now() < deadline, "unshare does not come to it");
            thread::sleep(Duration::from_millis(2));
        }
        machine.within(|| bring_up_loopback().unwrap());
        Some(machine)
    }

    /// That of this process.
    pub(crate) fn own() -> Self {
        bring_up_loopback().unwrap();
        Self(None)
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().map_or_else(std::process::id, Child::id)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    pub(super) fn namespace(&self) -> Namespace {
        Namespace::at(self.path()).unwrap()
    }

    /// Runs `work` on a thread that lives there.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace();
        thread::scope(|scope| {
            let there = scope.spawn(move || {
                namespace.enter().unwrap();
                work()
            });
            there.join().unwrap()
        })
    }

    /// A wire to `other`: an interface here of this name and hardware address, and one there.
    pub(crate) fn wire(&self, name: &str, mac: [u8; 6], other: &Self, other_name: &str) {
        const VETH_INFO_PEER: u16 = 1;
        let (nested, pid) = (|attribute: Message| attribute.attributes(), other.pid());
        let peer = Message::new(0, 0, &[]).attribute(3, &terminated(other_name)).attribute(19, &pid.to_ne_bytes());
        let peer = [&[0; 16][..], &nested(peer)].concat();
        let data = nested(Message::new(0, 0, &[]).attribute(VETH_INFO_PEER, &peer));
        let info = nested(Message::new(0, 0, &[]).attribute(1, b"veth\0").attribute(2, &data));
        let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &[0; 16])
            .attribute(3, &terminated(name))
            .attribute(1, &mac)
            .attribute(18, &info);
        self.within(move || Socket::route().unwrap().order_one(message).unwrap());
    }

    /// Brings `name` up, with an address.
    pub(crate) fn address(&self, name: &str, address: Ipv4Addr, prefix_len: u8) {
        self.within(|| {
            let socket = Socket::route().unwrap();
            let index = index_of(&socket, name).unwrap().expect("no such interface");
            let mut up = [0; 16];
            up[4..8].copy_from_slice(&index.to_ne_bytes());
            (up[8], up[12]) = (1, 1);
            socket.order_one(Message::new(RTM_NEWLINK, 0, &up)).unwrap();
            let mut fixed = [2, prefix_len, 0, 0, 0, 0, 0, 0];
            fixed[4..].copy_from_slice(&index.to_ne_bytes());
            let message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &fixed).attribute(2, &address.octets());
            socket.order_one(message.attribute(1, &address.octets())).unwrap();
        });
    }

    /// What the kernel says of interface `name`, if there is one: flags, hardware address, MTU.
    pub(crate) fn interface(&self, name: &str) -> Option<(u32, Vec<u8>, u32)> {
        self.within(|| {
            let mut seen = None;
            let listed = Socket::route().unwrap().list(Message::new(RTM_GETLINK, 0, &[0; 16]), |link| {
                let of = |kind| {
                    let mut all = attributes(&link[16..]).map(Result::unwrap);
                    all.find(|attribute| attribute.0 == kind).map(|attribute| attribute.1.to_vec())
                };
                if of(3) == Some(terminated(name)) {
                    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
                    seen = Some((number(&link[8..12]), of(1).unwrap(), number(&of(4).unwrap())));
                }
                Ok(())
            });
            listed.unwrap();
            seen
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn index_of(socket: &Socket, name: &str) -> io::Result<Option<i32>> {
    let mut found = None;
    socket.list(Message::new(RTM_GETLINK, 0, &[0; 16]), |link| {
        if attributes(&link[16..]).map(Result::unwrap).any(|(kind, value)| kind == 3 && value == terminated(name)) {
            found = Some(i32::from_ne_bytes(link[4..8].try_into().unwrap()));
        }
        Ok(())
    })?;
    Ok(found)
}
