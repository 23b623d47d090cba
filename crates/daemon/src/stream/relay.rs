//! Bytes both ways.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

/// How much of one direction is on its way, in bytes.
const CHUNK: usize = 16 << 10;

/// Carries bytes both ways until both sides have ended their halves, or one of them broke. Calls `notes` whenever there was
/// something to carry.
pub(crate) async fn relay(
    one: impl AsyncRead + AsyncWrite,
    other: impl AsyncRead + AsyncWrite,
    notes: impl Fn(),
) -> io::Result<()> {
    let (mut from_one, mut to_one) = split(one);
    let (mut from_other, mut to_other) = split(other);
    let there = carry(&mut from_one, &mut to_other, &notes);
    let back = carry(&mut from_other, &mut to_one, &notes);
    tokio::try_join!(there, back).map(|_| ())
}

async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    notes: &impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        notes();
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn each_half_ends_by_itself_and_traffic_is_noted() {
        let (mut client, one) = UnixStream::pair().unwrap();
        let (mut guest, other) = UnixStream::pair().unwrap();
        let noted = AtomicUsize::new(0);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = String::new();
            guest.read_to_string(&mut heard).await.unwrap();
            guest.write_all(b"answer").await.unwrap();
            drop(guest);
            client.read_to_string(&mut heard).await.unwrap();
            heard
        };
        let relayed = relay(one, other, || {
            noted.fetch_add(1, Ordering::Relaxed);
        });
        let (heard, relayed) = tokio::join!(talk, relayed);
        assert_eq!((heard.as_str(), noted.into_inner()), ("questionanswer", 2));
        relayed.unwrap();
    }
}
