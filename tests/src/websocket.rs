//! The client's side of a WebSocket (RFC 6455): short texts, each in one frame.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Key and answer of the RFC's own example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A text that is the last, and all, of its message.
const TEXT: u8 = 0x81;
/// Longer texts have another form of header.
const MAX_LEN: u8 = 125;
/// Any will do: it is against proxies that are confused.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A WebSocket that was accepted.
#[derive(Debug)]
pub struct WebSocket(BufReader<TcpStream>);

impl WebSocket {
    /// Asks for one with these lines in the head.
    pub(crate) fn begin(mut stream: TcpStream, lines: &str) -> Self {
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
        let request = format!("GET / HTTP/1.1\r\n{lines}{upgrade}Sec-WebSocket-Key: {KEY}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the server takes a request");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("an answer"), 0, "only {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
        Self(reader)
    }

    /// Sends a text.
    ///
    /// # Panics
    ///
    /// When it is longer than 125 bytes, or there is no connection any more.
    pub fn say(&mut self, text: &str) {
        let len = u8::try_from(text.len()).ok().filter(|len| *len <= MAX_LEN).expect("a short text");
        let mut frame = vec![TEXT, 0x80 | len];
        frame.extend(MASK);
        frame.extend(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.get_mut().write_all(&frame).expect("the connection lives");
    }

    /// The next text that comes.
    ///
    /// # Panics
    ///
    /// When something else comes, or nothing.
    pub fn hear(&mut self) -> String {
        let mut header = [0; 2];
        self.0.read_exact(&mut header).expect("the connection lives");
        assert!(header[0] == TEXT && header[1] <= MAX_LEN, "{header:x?} begins no short text");
        let mut text = vec![0; usize::from(header[1])];
        self.0.read_exact(&mut text).expect("the connection lives");
        String::from_utf8(text).expect("a text")
    }
}
