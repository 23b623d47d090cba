//! Whether the daemon in the emulated host answers.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// QEMU takes the connection at once, whether anyone listens in there or not.
const LIMIT: Duration = Duration::from_secs(1);

/// Whether the daemon behind this port answers, and takes this token.
pub(super) fn comes(port: u16, token: &str) -> bool {
    ask(port, token).is_ok_and(|status| status == *b"HTTP/1.1 200")
}

fn ask(port: u16, token: &str) -> io::Result<[u8; 12]> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request =
        format!("GET /version HTTP/1.1\r\nHost: pando\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn told(answer: &'static str) -> bool {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let comes = comes(port, "secret");
        assert!(server.join().unwrap().contains("Authorization: Bearer secret\r\n"));
        comes
    }

    #[test]
    fn only_a_daemon_that_takes_the_token_counts() {
        assert!(told("HTTP/1.1 200 OK\r\n\r\n{}"));
        assert!(!told("HTTP/1.1 401 Unauthorized\r\n\r\n"));
        assert!(!told(""));
    }
}
