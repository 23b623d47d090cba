//! An initramfs: a `newc` cpio archive, not compressed, because an emulated CPU is slow at unpacking.

/// An archive that grows by one entry at a time; folders before what lies in them.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

impl Archive {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), next_inode: 1 }
    }

    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, content);
    }

    pub(crate) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The archive. The kernel unpacks several that follow each other.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        // Module files and scripts: far below the format's 4 GiB.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let path_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let links = 1;
        let fields = [self.next_inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, path_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self.next_inode += 1;
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_what_was_written() {
        let Ok(cpio) = (crate::tools::Tool { program: "cpio", package: "cpio" }).find() else {
            eprintln!("skipped: no cpio");
            return;
        };
        let mut archive = Archive::new();
        archive.folder("bin");
        archive.program("bin/sh", b"12345");
        archive.file("empty", b"");
        let bytes = archive.finish();
        let mut child =
            Command::new(cpio).args(["-itv", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<_> = listing
            .lines()
            .map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                format!("{} {} {}", words[0], words[4], words[8..].join(" "))
            })
            .collect();
        assert_eq!(lines, ["drwxr-xr-x 0 bin", "-rwxr-xr-x 5 bin/sh", "-rw-r--r-- 0 empty"]);
    }
}
