//! One message on a byte stream: a little-endian `u32` length, then that many bytes of postcard.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// The longest message that either side accepts, so that a lying peer cannot make the other allocate without bound.
pub const MAX_LEN: usize = 1 << 20;

/// The bytes of `message`, length first.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(invalid)?;
    let len = bytes.len() - 4;
    if len > MAX_LEN {
        return Err(invalid(format!("a message of {len} bytes is over the limit of {MAX_LEN}")));
    }
    // Fits: MAX_LEN is far below u32::MAX.
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(bytes)
}

/// The message in `payload`, which is a frame without its length.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    postcard::from_bytes(payload).map_err(invalid)
}

/// Checks a length that a peer sent.
pub fn checked_len(prefix: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len > MAX_LEN {
        return Err(invalid(format!("the peer announced {len} bytes, over the limit of {MAX_LEN}")));
    }
    Ok(len)
}

/// Writes one message.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message)?)
}

/// Reads one message. `None` when the peer closed the stream between two messages.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    let got = loop {
        match stream.read(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (), // As `read_exact` has it.
            got => break got?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[got..])?;
    let mut payload = vec![0; checked_len(prefix)?];
    stream.read_exact(&mut payload)?;
    decode(&payload).map(Some)
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_the_end_is_none() {
        let mut bytes = encode(&("exec", 7u32)).unwrap();
        bytes.extend(encode(&("wait", 8u32)).unwrap());
        let mut stream = &bytes[..];
        assert_eq!(read(&mut stream).unwrap(), Some(("exec".to_owned(), 7u32)));
        assert_eq!(read(&mut stream).unwrap(), Some(("wait".to_owned(), 8u32)));
        assert_eq!(read::<(String, u32)>(&mut stream).unwrap(), None);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let mut stream = &u32::MAX.to_le_bytes()[..];
        let error = read::<u8>(&mut stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
