//! One client's life.
//!
//! ```text
//!  Greeting ──"CONNECT port"──► Requested ──RESPONSE──► Streaming ──► closed
//!     │                            │                                    ▲
//!     └──── nonsense, or gone ─────┴──── RST, or gone ──────────────────┘
//! ```
//!
//! A streaming connection ends when the guest has ended both directions (it is then answered with RST, once the client
//! has everything), or has sent RST. What the client ends is told to the guest with SHUTDOWN, one direction at a time.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::credit::Credit;
use super::greeting::{Greeting, Heard};
use super::packet::{Header, op, shutdown};
use super::socket::{self, Progress};

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    phase: Phase,
    guest_port: u32,
    credit: Credit,
    /// The socket may have something to read, or room to write: edges, each true until an attempt says "later".
    readable: bool,
    writable: bool,
    /// What came from the guest and waits for the client.
    to_client: VecDeque<u8>,
    /// What the guest will do no more, of [`shutdown`].
    guest_ended: u32,
    /// Of that, what the socket has been told. Telling it again would make an edge, which would lead here again.
    socket_ended: u32,
    /// What the client will do no more, and what the guest has been told of that.
    client_ended: u32,
    client_end_told: u32,
    /// The guest has forgotten the connection; the client still has to get what it sent.
    forgotten: bool,
    /// The guest was asked for credit and has not given any.
    asked_for_credit: bool,
    /// The guest asked for credit.
    owes_credit: bool,
    /// It is in the device's list of connections with something to say.
    pub(super) listed: bool,
}

#[derive(Debug)]
enum Phase {
    /// The client has not said what it wants.
    Greeting(Greeting),
    /// The guest is asked.
    Requested { sent: bool },
    /// Bytes flow.
    Streaming,
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives.
    Keep,
    /// Close it; the guest knows.
    Close,
    /// Close it, and reset the guest's side.
    Reset,
}

/// A packet for the guest, addresses left out: so many bytes of the buffer are its data.
pub(super) type Outgoing = (Header, usize);

impl Connection {
    /// A client that has just come.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            phase: Phase::Greeting(Greeting::default()),
            guest_port: 0,
            credit: Credit::default(),
            readable: false,
            writable: false,
            to_client: VecDeque::new(),
            guest_ended: 0,
            socket_ended: 0,
            client_ended: 0,
            client_end_told: 0,
            forgotten: false,
            asked_for_credit: false,
            owes_credit: false,
            listed: false,
        }
    }

    /// The guest's port.
    pub(super) fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// Whether the guest has heard of it, at `guest_port`.
    pub(super) fn is_known_to_guest(&self, guest_port: u32) -> bool {
        let known = matches!(self.phase, Phase::Requested { sent: true } | Phase::Streaming);
        known && !self.forgotten && self.guest_port == guest_port
    }

    /// Whether it waits for the guest to be asked.
    pub(super) fn waits_to_be_requested(&self) -> bool {
        matches!(self.phase, Phase::Requested { sent: false })
    }

    /// Whether the client is gone and only the guest's goodbye is missing.
    pub(super) fn is_abandoned(&self) -> bool {
        matches!(self.phase, Phase::Streaming) && self.client_ended == shutdown::BOTH
    }

    /// Something happened to the socket: there is something to `read`, there is room to `write`, the client is `gone`.
    pub(super) fn on_socket(&mut self, read: bool, write: bool, gone: bool) -> Fate {
        self.readable |= read || gone;
        self.writable |= write || gone;
        match &mut self.phase {
            Phase::Greeting(greeting) => match greeting.read(&self.stream) {
                Heard::Part => Fate::Keep,
                Heard::Port(port) => {
                    self.guest_port = port;
                    self.phase = Phase::Requested { sent: false };
                    if gone { Fate::Close } else { Fate::Keep }
                }
                Heard::Nonsense => Fate::Close,
            },
            Phase::Requested { sent } if gone => {
                if *sent {
                    Fate::Reset
                } else {
                    Fate::Close
                }
            }
            Phase::Requested { .. } => Fate::Keep,
            Phase::Streaming => {
                if gone {
                    // What it sent before is still to be read, unless nobody will.
                    let nobody_reads = self.guest_ended & shutdown::RECEIVE != 0;
                    self.client_ended |= if nobody_reads { shutdown::BOTH } else { shutdown::RECEIVE };
                }
                self.flush();
                self.fate()
            }
        }
    }

    /// The guest sent a packet with `data`, which is empty unless it is of [`op::RW`].
    pub(super) fn on_packet(&mut self, header: &Header, data: &[u8], host_port: u32) -> Fate {
        match (&self.phase, header.op) {
            (Phase::Streaming, op::RST) => self.forgotten = true,
            (_, op::RST) => return Fate::Close,
            (Phase::Requested { .. }, op::RESPONSE) => {
                self.credit.heard(header);
                self.phase = Phase::Streaming;
                let answer = format!("OK {host_port}\n");
                // Nothing was written to this client before, so there is room, or it is gone.
                if socket::write(&self.stream, answer.as_bytes()) != Progress::Bytes(answer.len()) {
                    return Fate::Reset;
                }
            }
            (Phase::Streaming, op::RW | op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST) => {
                self.credit.heard(header);
                self.asked_for_credit &= self.credit.room_in_guest() == 0;
                match header.op {
                    op::RW if self.take(data).is_none() => return Fate::Reset,
                    op::SHUTDOWN => self.on_guest_end(header.flags),
                    op::CREDIT_REQUEST => self.owes_credit = true,
                    _ => (), // The credit was all there was to it.
                }
            }
            _ => return Fate::Reset, // A request of its own, an answer not asked for, or no operation.
        }
        self.fate()
    }

    /// The next packet for the guest, which has room for `room` bytes of data; they go into `buffer`.
    pub(super) fn next_packet(&mut self, room: usize, buffer: &mut [u8], may_request: bool) -> Option<Outgoing> {
        let (op, flags, len) = match &mut self.phase {
            Phase::Greeting(_) => return None,
            Phase::Requested { sent } if !*sent && may_request => {
                *sent = true;
                (op::REQUEST, 0, 0)
            }
            Phase::Requested { .. } => return None,
            Phase::Streaming if self.forgotten => return None,
            Phase::Streaming => self.next_of_stream(room, buffer)?,
        };
        let mut header = Header { op, flags, len: len as u32, ..Header::default() };
        self.credit.send(header.len);
        self.credit.tell(&mut header);
        self.owes_credit = false; // Every packet tells it.
        Some((header, len))
    }

    fn next_of_stream(&mut self, room: usize, buffer: &mut [u8]) -> Option<(u16, u32, usize)> {
        let room = room.min(buffer.len());
        if self.wants_data() && room != 0 {
            let credit = self.credit.room_in_guest() as usize;
            if credit == 0 && !self.asked_for_credit {
                self.asked_for_credit = true;
                return Some((op::CREDIT_REQUEST, 0, 0));
            }
            if credit != 0 {
                match socket::read(&self.stream, &mut buffer[..room.min(credit)]) {
                    Progress::Bytes(len) => return Some((op::RW, 0, len)),
                    Progress::Later => self.readable = false,
                    Progress::Ended => self.client_ended |= shutdown::SEND,
                }
            }
        }
        if self.owes_credit || self.credit.has_news() {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        if self.client_ended != self.client_end_told {
            self.client_end_told = self.client_ended;
            return Some((op::SHUTDOWN, self.client_ended, 0));
        }
        None
    }

    fn wants_data(&self) -> bool {
        self.readable && self.client_ended & shutdown::SEND == 0 && self.guest_ended & shutdown::RECEIVE == 0
    }

    /// Takes bytes from the guest, unless it has no right to send them.
    fn take(&mut self, data: &[u8]) -> Option<()> {
        if self.guest_ended & shutdown::SEND != 0 {
            return None;
        }
        let len = u32::try_from(data.len()).ok()?;
        self.credit.receive(len).ok()?;
        self.to_client.extend(data);
        // It may have been that there was no room, but an edge would have told.
        self.flush();
        Some(())
    }

    fn on_guest_end(&mut self, flags: u32) {
        self.guest_ended |= flags & shutdown::BOTH;
        self.end_socket(shutdown::RECEIVE, Shutdown::Read);
        self.flush();
    }

    /// Writes what the client has room for.
    fn flush(&mut self) {
        while !self.to_client.is_empty() {
            if self.client_ended & shutdown::RECEIVE != 0 {
                self.forward(self.to_client.len());
                break;
            }
            if !self.writable {
                return;
            }
            match socket::write(&self.stream, self.to_client.as_slices().0) {
                Progress::Bytes(len) => self.forward(len),
                Progress::Later => self.writable = false,
                Progress::Ended => self.client_ended |= shutdown::RECEIVE,
            }
        }
        self.end_socket(shutdown::SEND, Shutdown::Write);
    }

    fn forward(&mut self, len: usize) {
        self.to_client.drain(..len);
        self.credit.forward(len as u32); // Never more than the buffer holds.
    }

    /// Tells the client that the guest has ended a direction, if it has.
    fn end_socket(&mut self, direction: u32, how: Shutdown) {
        if self.guest_ended & !self.socket_ended & direction != 0 {
            self.socket_ended |= direction;
            // The client ended it first, if that fails.
            let _: io::Result<()> = self.stream.shutdown(how);
        }
    }

    fn fate(&self) -> Fate {
        match (self.to_client.is_empty(), self.forgotten, self.guest_ended == shutdown::BOTH) {
            (true, true, _) => Fate::Close,
            (true, false, true) => Fate::Reset,
            _ => Fate::Keep,
        }
    }
}
