//! What tar says in extended headers, beyond what the `tar` crate takes from them.

use std::io::{self, Read};

/// A stretch of a sparse file: where, and how long, in bytes.
pub(super) type Stretch = (u64, u64);

/// The extended header of one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    /// The modification time: seconds, possibly negative, and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// Extended attributes, by name.
    pub(super) attributes: Vec<(String, Vec<u8>)>,
    /// How GNU tar stored a sparse file.
    pub(super) sparse: Option<GnuSparse>,
}

/// How GNU tar stored a sparse file in a pax archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GnuSparse {
    /// Its format: 1.0 is the only one whose map lies in front of the data.
    pub(super) version: (u32, u32),
    /// The file's name: the entry has another.
    pub(super) name: Option<Vec<u8>>,
    /// Its length with holes, in bytes.
    pub(super) real_bytes: u64,
}

impl Pax {
    /// Takes one record of an extended header. What is not understood is left to others.
    pub(super) fn take(&mut self, key: &str, value: &[u8]) {
        let number = || str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        match key {
            "mtime" => self.mtime = str::from_utf8(value).ok().and_then(parse_time),
            "GNU.sparse.major" => self.sparse().version.0 = number().unwrap_or(u32::MAX),
            "GNU.sparse.minor" => self.sparse().version.1 = number().unwrap_or(u32::MAX),
            "GNU.sparse.name" => self.sparse().name = Some(value.to_vec()),
            "GNU.sparse.realsize" => {
                self.sparse().real_bytes = str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            }
            "GNU.sparse.map" | "GNU.sparse.numblocks" | "GNU.sparse.size" => _ = self.sparse(),
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    self.attributes.push((name.to_owned(), value.to_vec()));
                }
            }
        }
    }

    fn sparse(&mut self) -> &mut GnuSparse {
        self.sparse.get_or_insert_default()
    }
}

/// A pax time: decimal seconds with any number of decimals.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{decimals:0<9}").get(..9)?.parse().ok()?;
    if text.starts_with('-') && nanoseconds != 0 {
        // Nanoseconds count forward from the second before.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

/// Reads the map in front of a sparse file of format 1.0: numbers in lines, padded to a whole block of the archive.
pub(super) fn read_sparse_map(input: &mut impl Read) -> io::Result<Vec<Stretch>> {
    let mut lines = Lines { input, block: [0; 512], at: 512 };
    let count = lines.number()?;
    let mut map = Vec::new();
    for _ in 0..count {
        map.push((lines.number()?, lines.number()?));
    }
    Ok(map)
}

struct Lines<'a, R> {
    input: &'a mut R,
    block: [u8; 512],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let wrong = || io::Error::other("the map of a sparse file is no list of numbers");
        let mut number = 0_u64;
        for digits in 0.. {
            if self.at == self.block.len() {
                self.input.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if digits != 0 => break,
                b'0'..=b'9' => {
                    let longer = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                    number = longer.ok_or_else(wrong)?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_time, read_sparse_map};

    #[test]
    fn times_before_and_after_1970_are_read() {
        assert_eq!(parse_time("12"), Some((12, 0)));
        assert_eq!(parse_time("1.5"), Some((1, 500_000_000)));
        assert_eq!(parse_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!([parse_time("x"), parse_time("1.x"), parse_time("")], [None; 3]);
    }

    #[test]
    fn a_map_that_is_none_is_refused() {
        let block = |text: &str| format!("{text:\0<512}").into_bytes();
        assert_eq!(read_sparse_map(&mut block("1\n0\n9\n").as_slice()).unwrap(), [(0, 9)]);
        for text in ["", "\n", "x\n", "2\n0\n9\n", "99999999999999999999999\n"] {
            assert!(read_sparse_map(&mut block(text).as_slice()).is_err(), "{text:?}");
        }
    }
}
