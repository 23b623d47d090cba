//! The archive that an initramfs is: cpio, "newc".
//!
//! ```text
//! entry: "070701" and 13 numbers of 8 hexadecimal digits │ name, NUL, padding to 4 │ contents, padding to 4
//! end:   an entry called TRAILER!!!
//! ```
//!
//! Archives may follow each other, each beginning at a multiple of 4 bytes: the kernel unpacks all of them.

const MAGIC: &[u8; 6] = b"070701";
const ALIGNMENT: usize = 4;

const DIRECTORY: u32 = 0o040000;
const FILE: u32 = 0o100000;
const CHARACTER_DEVICE: u32 = 0o020000;

/// An archive that grows. Everything in it belongs to root and is of 1970, so equal contents give equal bytes.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    /// Adds a directory; its parent was added before.
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file. `contents` is below 4 GiB, which is what the format can say.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, FILE | mode, (0, 0), contents);
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, CHARACTER_DEVICE | mode, number, &[]);
    }

    /// The whole archive; its length is a multiple of 4.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let inode = self.entries;
        let (owner, group, links, modified, checksum) = (0, 0, 1, 0, 0);
        let (file_len, name_len) = (contents.len() as u32, name.len() as u32 + 1);
        let on_device = (0, 0);
        self.bytes.extend(MAGIC);
        for number in [
            inode,
            mode,
            owner,
            group,
            links,
            modified,
            file_len,
            on_device.0,
            on_device.1,
            device.0,
            device.1,
            name_len,
            checksum,
        ] {
            self.bytes.extend(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    /// Name, mode and contents of every entry of every archive in `bytes`: a reader of its own, from the format.
    pub(crate) fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[..6], *b"070701");
            let number = |at: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * at..14 + 8 * at]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, file_len, name_len) = (number(1), number(6) as usize, number(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_len - 1].to_vec()).unwrap();
            let contents = (110 + name_len).next_multiple_of(4);
            let end = (contents + file_len).next_multiple_of(4);
            entries.push((name, mode, bytes[contents..contents + file_len].to_vec()));
            bytes = &bytes[end..];
        }
        entries.retain(|(name, ..)| name != "TRAILER!!!");
        entries
    }

    fn sample() -> Vec<u8> {
        let mut archive = Cpio::default();
        archive.directory("dev");
        archive.device("dev/console", 0o600, (5, 1));
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.file("empty", 0o644, b"");
        archive.finish()
    }

    #[test]
    fn what_went_in_comes_out() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        let expected = [
            ("dev", 0o040755, &b""[..]),
            ("dev/console", 0o020600, b""),
            ("init", 0o100755, b"#!/bin/sh\n"),
            ("empty", 0o100644, b""),
        ];
        assert_eq!(read(&bytes), expected.map(|(name, mode, contents)| (name.to_owned(), mode, contents.to_vec())));
    }

    #[test]
    fn the_cpio_command_reads_it_too() {
        let Ok(mut cpio) =
            Command::new("cpio").arg("-tv").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        else {
            return eprintln!("skipped: there is no cpio command");
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1") && lines[1].ends_with("dev/console"));
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with("init"), "{listing}");
    }
}
