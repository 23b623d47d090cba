//! "CONNECT 1024\n": what a client says first, however slowly.

use std::os::unix::net::UnixStream;

use super::socket::{self, Progress};

/// Longer than any good greeting: "CONNECT 4294967295\n" has 19 bytes.
const MAX_LINE_BYTES: usize = 32;

/// What has been read of a greeting.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    line: Vec<u8>,
}

/// How far a greeting has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// More of it is to come.
    Part,
    /// The client wants this port.
    Port(u32),
    /// The client is gone, or speaks another language.
    Nonsense,
}

impl Greeting {
    /// Reads on. What follows the greeting stays in the socket: it is for the guest.
    pub(super) fn read(&mut self, stream: &UnixStream) -> Heard {
        loop {
            let mut ahead = [0; MAX_LINE_BYTES];
            let room = MAX_LINE_BYTES - self.line.len();
            let count = match socket::peek(stream, &mut ahead[..room]) {
                Progress::Bytes(count) => count,
                Progress::Later => return Heard::Part,
                Progress::Ended => return Heard::Nonsense,
            };
            let end = ahead[..count].iter().position(|byte| *byte == b'\n');
            let wanted = end.map_or(count, |end| end + 1);
            // Nobody else reads this socket, so what was seen is there.
            if socket::read(stream, &mut ahead[..wanted]) != Progress::Bytes(wanted) {
                return Heard::Nonsense;
            }
            self.line.extend_from_slice(&ahead[..wanted]);
            if end.is_some() {
                return port(&self.line).map_or(Heard::Nonsense, Heard::Port);
            }
            if self.line.len() == MAX_LINE_BYTES {
                return Heard::Nonsense;
            }
        }
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    let only_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if !only_digits {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn hear(pieces: &[&[u8]]) -> Vec<Heard> {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let mut greeting = Greeting::default();
        pieces
            .iter()
            .map(|piece| {
                client.write_all(piece).unwrap();
                greeting.read(&stream)
            })
            .collect()
    }

    #[test]
    fn a_greeting_may_come_in_pieces() {
        assert_eq!(hear(&[b"CONNECT 1024\n"]), [Heard::Port(1024)]);
        assert_eq!(
            hear(&[b"CON", b"NECT 42", b"94967295", b"\n"]),
            [Heard::Part, Heard::Part, Heard::Part, Heard::Port(u32::MAX)]
        );
    }

    #[test]
    fn what_follows_a_greeting_is_for_the_guest() {
        let (mut client, mut stream) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 7\nhello").unwrap();
        assert_eq!(Greeting::default().read(&stream), Heard::Port(7));
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn another_language_is_not_understood() {
        for line in [&b"GET / HTTP/1.1\n"[..], b"CONNECT \n", b"CONNECT +1\n", b"CONNECT 4294967296\n", b"\n"] {
            assert_eq!(hear(&[line]), [Heard::Nonsense], "{line:?}");
        }
        assert_eq!(hear(&[&[b'C'; 32]]), [Heard::Nonsense]);
        let (client, stream) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(Greeting::default().read(&stream), Heard::Nonsense);
    }
}
