//! Output that ends with a line `<marker> <status>`.

use std::io::{self, Read, Write};

/// Takes an output apart: what belongs to it, and the status at its end.
pub(crate) struct Marked {
    marker: Vec<u8>,
    /// What may be the beginning of the marker, or the marker and its still incomplete status.
    held: Vec<u8>,
}

impl Marked {
    pub(crate) fn new(marker: &str) -> Self {
        Self { marker: marker.as_bytes().to_vec(), held: Vec::new() }
    }

    /// Adds `bytes` that arrived: what can be passed on, and the status when the end is reached. An unreadable status
    /// is 255. Nothing may be added after the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<u8>) {
        self.held.extend_from_slice(bytes);
        if let Some(at) = self.held.windows(self.marker.len()).position(|window| window == self.marker) {
            let rest = &self.held[at + self.marker.len()..];
            let status = rest.iter().position(|&byte| byte == b'\n').map(|end| parse(&rest[..end]));
            let passed = self.held.drain(..at).collect();
            return (passed, status);
        }
        let kept =
            (1..self.marker.len()).rev().find(|&length| self.held.ends_with(&self.marker[..length])).unwrap_or(0);
        (self.held.drain(..self.held.len() - kept).collect(), None)
    }

    /// What was held back, when the output ends without a marker.
    pub(crate) fn rest(self) -> Vec<u8> {
        self.held
    }
}

fn parse(status: &[u8]) -> u8 {
    std::str::from_utf8(status).ok().and_then(|status| status.trim().parse().ok()).unwrap_or(u8::MAX)
}

/// Tells when a line comes by that is exactly `line`.
pub(crate) struct LineWatch {
    line: &'static [u8],
    /// How much of the line has been seen; `None` in a line that is another one.
    seen: Option<usize>,
}

impl LineWatch {
    pub(crate) fn new(line: &'static str) -> Self {
        Self { line: line.as_bytes(), seen: Some(0) }
    }

    /// Whether `line` ended among `bytes`, which follow those of the last call.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for &byte in bytes {
            if byte == b'\n' {
                found |= self.seen == Some(self.line.len());
                self.seen = Some(0);
            } else {
                self.seen = self.seen.filter(|&seen| self.line.get(seen) == Some(&byte)).map(|seen| seen + 1);
            }
        }
        found
    }
}

/// Copies `from` to `to`, as it comes, up to its marker or its end. `seen` gets every piece that was copied.
pub(crate) fn copy(
    mut from: impl Read,
    mut to: impl Write,
    marker: &str,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<Option<u8>> {
    let mut marked = Marked::new(marker);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (passed, status, ended) = if count == 0 {
            (std::mem::replace(&mut marked, Marked::new(marker)).rest(), None, true)
        } else {
            let (passed, status) = marked.push(&buffer[..count]);
            (passed, status, status.is_some())
        };
        if !passed.is_empty() {
            to.write_all(&passed)?;
            to.flush()?;
            seen(&passed);
        }
        if ended {
            return Ok(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_whole_however_it_is_cut() {
        let text = b"one\ntwo MMAR MMARK MARKER 17\n";
        for size in 1..text.len() {
            let mut marked = Marked::new("MARKER");
            let mut output = Vec::new();
            let mut end = None;
            for piece in text.chunks(size) {
                let (passed, status) = marked.push(piece);
                output.extend(passed);
                end = end.or(status);
            }
            assert_eq!((&*output, end), (&b"one\ntwo MMAR MMARK "[..], Some(17)), "pieces of {size}");
        }
    }

    #[test]
    fn what_looks_like_the_beginning_of_a_marker_is_not_lost_at_the_end() {
        let mut output = Vec::new();
        let end = copy(&b"half a MARK"[..], &mut output, "MARKER", |_| ()).unwrap();
        assert_eq!((&*output, end), (&b"half a MARK"[..], None));
    }

    #[test]
    fn a_line_is_seen_only_when_it_is_whole_and_alone() {
        let text = b"CUT?\n CUT\nCUTCUT\nCU\nCUT";
        for size in 1..text.len() {
            let mut watch = LineWatch::new("CUT");
            assert!(!text.chunks(size).any(|piece| watch.push(piece)));
            assert!(watch.push(b"\n"));
        }
    }
}
