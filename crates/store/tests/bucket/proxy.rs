//! A network between us and the server that is slow, broken or full.

use crate::server::{self, Server};
use pando_store::BucketSpec;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the network does from now on, with connections that are open, too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    /// Passes everything on.
    Well,
    /// Passes everything on, 64 KiB at a time with a pause after each.
    Slow,
    /// Takes everything and passes nothing on.
    Stalled,
    /// Passes so many bytes on, and then closes every connection.
    DieAfter(usize),
    /// Says that there is no space left to who wants to write.
    Full,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
}

impl Proxy {
    /// It goes with the test's process.
    pub(crate) fn before(server: &Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mood = Arc::new(Mutex::new(Mood::Well));
        let (moods, to) = (mood.clone(), server.address);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (back, moods) = ((server.try_clone().unwrap(), client.try_clone().unwrap()), moods.clone());
                let also = moods.clone();
                thread::spawn(move || pass(client, server, &moods));
                thread::spawn(move || pass(back.0, back.1, &also));
            }
        });
        Self { address, mood }
    }

    pub(crate) fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn spec(&self, prefix: &str) -> BucketSpec {
        server::spec(self.address, prefix)
    }
}

/// Passes on what comes from one side to the other until one of them ends.
fn pass(mut from: TcpStream, mut to: TcpStream, mood: &Mutex<Mood>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        let is_put = bytes.starts_with(b"PUT ");
        let now = {
            let mut mood = mood.lock().unwrap();
            let now = *mood;
            if let Mood::DieAfter(left) = now {
                *mood = Mood::DieAfter(left.saturating_sub(len));
            }
            now
        };
        match now {
            Mood::Well => (),
            Mood::Slow => thread::sleep(Duration::from_millis(100)),
            Mood::Stalled => continue,
            Mood::DieAfter(left) if left < len => break,
            Mood::DieAfter(_) => (),
            Mood::Full if is_put => {
                let answer = "HTTP/1.1 507 Insufficient Storage\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                let _ = from.write_all(answer.as_bytes());
                let _ = from.shutdown(Shutdown::Write);
                // What is still to come is taken, or closing would reset the answer.
                while let Ok(1..) = from.read(&mut bytes) {}
                break;
            }
            Mood::Full => (),
        }
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
