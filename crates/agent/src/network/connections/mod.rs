//! The end of every TCP connection that leads out of this machine.
//!
//! A child of a fork has copies of its parent's connections, and one that slept has connections that the world outside
//! has forgotten. Whoever waits for such a one would wait for long; so the kernel ends them (`SOCK_DESTROY`), and
//! programs are told at once. Connections inside the machine, listening sockets and UDP stay.

use crate::network::{
    interface::{self, AF_INET, AF_INET6},
    namespaces::{self, Namespace},
    netlink::{Message, Socket, malformed},
};
use rustix::io::Errno;
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;

/// `inet_diag_sockid`: ports, addresses, interface, and a number that no other socket has.
const ID: usize = 48;
/// Where in it the peer's address is.
const PEER: usize = 20;

/// States of TCP, by number, in which a socket has a peer that may still speak: all but TIME_WAIT (6: no program has it
/// any more, and it says nothing of its own), CLOSE (7) and LISTEN (10). 12 is a connection that nobody accepted yet.
const CONNECTED: [u32; 9] = [1, 2, 3, 4, 5, 8, 9, 11, 12];

/// Connections are ended in pieces of so many: their answers fit into a socket.
const AT_ONCE: usize = 64;

/// A list may lack what changes while it is made. So it is made again until nothing is on it, and so often at most, as
/// a program that stands still for nobody may make new ones.
const PASSES: usize = 3;

/// How long all of it may take: programs stand still meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

/// Why connections that lead outside may be left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetError {
    /// No `tcp_diag`, or none that ends connections.
    #[error("the kernel cannot end connections")]
    NotPossible,
    /// The rest is left.
    #[error("there are too many: {0} were ended in {limit} s", limit = LIMIT.as_secs())]
    TooMany(usize),
    /// Something went wrong, with some of them at least.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What it was asked.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// For the kernel's refusal to do `what`.
fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> ResetError {
    move |source| ResetError::Kernel { what, source }
}

/// Ends every TCP connection, in all network namespaces of this machine, to a peer that is not this machine. How many.
pub(crate) fn reset_outside() -> Result<usize, ResetError> {
    // A thread that leaves its namespace is of no further use.
    let resetting = thread::Builder::new().name("reset".into()).spawn(|| {
        let all = namespaces::all().map_err(cannot("find the network namespaces"))?;
        reset_in(&all, Instant::now() + LIMIT)
    });
    let done = resetting.map_err(cannot("start a thread"))?.join();
    done.unwrap_or_else(|_| Err(cannot("go on")(io::Error::other("a thread panicked"))))
}

/// The same in `namespaces`, which are all of a machine, until `deadline`. Leaves this thread in one of them.
fn reset_in(namespaces: &[Namespace], deadline: Instant) -> Result<usize, ResetError> {
    let own = addresses_in(namespaces).map_err(cannot("list the machine's addresses"))?;
    let mut ended = 0;
    // One that goes wrong keeps none of the others.
    let failures = namespaces.iter().filter_map(|namespace| {
        let entered = namespace.enter().map_err(cannot("enter a network namespace"));
        entered.and_then(|()| reset_here(&own, deadline, &mut ended)).err()
    });
    failures.reduce(|first, _| first).map_or(Ok(ended), Err)
}

/// The machine's addresses: what a container speaks to with one of them is inside.
fn addresses_in(namespaces: &[Namespace]) -> io::Result<HashSet<IpAddr>> {
    let mut all = HashSet::new();
    for namespace in namespaces {
        namespace.enter()?;
        all.extend(interface::addresses()?);
    }
    Ok(all)
}

fn reset_here(own: &HashSet<IpAddr>, deadline: Instant, ended: &mut usize) -> Result<(), ResetError> {
    let socket = Socket::diagnosis().map_err(cannot("ask for connections"))?;
    for _ in 0..PASSES {
        let mut outside = Vec::new();
        for family in [AF_INET, AF_INET6] {
            match list(&socket, family, own, &mut outside) {
                Err(error) if is(&error, Errno::NOENT) => return Err(ResetError::NotPossible),
                listed => listed.map_err(cannot("list the connections"))?,
            }
        }
        if outside.is_empty() {
            return Ok(());
        }
        for some in outside.chunks(AT_ONCE) {
            if Instant::now() >= deadline {
                return Err(ResetError::TooMany(*ended));
            }
            *ended += end(&socket, some)?;
        }
    }
    Ok(())
}

/// A connection, in the kernel's words.
struct Connection {
    family: u8,
    id: [u8; ID],
}

/// Adds the connections of `family` whose peer is elsewhere.
fn list(socket: &Socket, family: u8, own: &HashSet<IpAddr>, outside: &mut Vec<Connection>) -> io::Result<()> {
    let states = CONNECTED.iter().fold(0, |states, state| states | 1 << state);
    socket.list(Message::new(SOCK_DIAG_BY_FAMILY, 0, &request(family, states, &[0; ID])), |answer| {
        let (connection, peer) = read(answer)?;
        if !peer.is_loopback() && !own.contains(&peer) {
            outside.push(connection);
        }
        Ok(())
    })
}

/// Ends each of `connections`. How many there were still.
fn end(socket: &Socket, connections: &[Connection]) -> Result<usize, ResetError> {
    let order = |one: &Connection| Message::new(SOCK_DESTROY, 0, &request(one.family, 0, &one.id));
    let results = socket.order(connections.iter().map(order).collect()).map_err(cannot("end connections"))?;
    let mut ended = 0;
    for result in results {
        match result {
            Ok(()) => ended += 1,
            // It ended by itself. A listening socket that is found in its place has another number, and is not taken for it.
            Err(error) if is(&error, Errno::NOENT) => (),
            Err(error) if is(&error, Errno::OPNOTSUPP) => return Err(ResetError::NotPossible),
            Err(error) => return Err(cannot("end a connection")(error)),
        }
    }
    Ok(ended)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// `inet_diag_req_v2`:
///
/// ```text
///  0        1          2        4        8       56
///  | family | protocol | ext, 0 | states | id … |
/// ```
fn request(family: u8, states: u32, id: &[u8; ID]) -> [u8; 8 + ID] {
    let mut request = [0; 8 + ID];
    request[..2].copy_from_slice(&[family, TCP]);
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    request[8..].copy_from_slice(id);
    request
}

/// `inet_diag_msg`: the connection and its peer.
///
/// ```text
///  0        1       2                4      52
///  | family | state | timer, retries | id … | what we do not ask
/// ```
fn read(answer: &[u8]) -> io::Result<(Connection, IpAddr)> {
    let id = answer.get(4..).and_then(|rest| rest.first_chunk::<ID>()).ok_or_else(malformed)?;
    let peer = |len| &id[PEER..PEER + len];
    let peer = match answer[0] {
        AF_INET => <[u8; 4]>::try_from(peer(4)).map(|bytes| Ipv4Addr::from(bytes).into()),
        // That of a socket which speaks both is an IPv4 address in an IPv6 one.
        AF_INET6 => <[u8; 16]>::try_from(peer(16)).map(|bytes| Ipv6Addr::from(bytes).to_canonical()),
        _ => return Err(malformed()),
    };
    Ok((Connection { family: answer[0], id: *id }, peer.map_err(|_| malformed())?))
}

#[cfg(test)]
mod tests;
