//! The witness: a toy guest with several CPUs, a disk and a vsock, that notices when it was not copied at one instant.
//!
//! Every step is numbered, in a register, and whatever a step writes carries its number and who wrote it: what VMGENID
//! shows. Before a step overwrites what one did a lap ago, it looks at that:
//!
//! - the number is the one that was written there a lap ago: memory, disk and registers are of one instant;
//! - it was written by the guest itself if that was after it became who it is, and by another if before: nothing of a
//!   relative's comes through after a fork.
//!
//! Each CPU walks over pages of its own and keeps the number in an SSE register as well. The first CPU keeps records on
//! the disk, one a lap; the last sends a packet through vsock in every lap and waits for the host's refusal. So a lap
//! needs all of the machine. At its end the CPU says so on the serial port, a byte: [`Told`].
//!
//! Its code is `witness.s`; the bytes beside it are made with
//! `as --64 witness.s -o witness.o && objcopy -O binary -j .text witness.o witness.bin`.

use crate::monitor::Guest;
use crate::toy::executable;

const CODE: &[u8] = include_bytes!("witness.bin");
/// Bytes of a record and of a page.
const BLOCK: u64 = 4096;
/// Where the walked pages begin, above everything that the code uses.
const PAGES_AT: u64 = 4 << 20;

/// A witness.
#[derive(Debug, Clone, Copy)]
pub struct Witness {
    /// 1 to 8.
    pub vcpus: u8,
    /// How many pages each CPU walks over in a lap; not none.
    pub pages: u64,
    /// How many records the disk holds; with none, the disk is left alone.
    pub records: u64,
}

/// What a witness says with one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// This CPU begins.
    Ready(u8),
    /// This CPU made a lap, whose number ends in these four bits.
    Lap(u8, u8),
    /// Something was not what it should be; this CPU stands still.
    Broken(u8, &'static str),
}

impl Witness {
    /// The page with the header of its disk request, which is zeroes when it reads the first record: all others hold
    /// something at any time once they did.
    pub const HEADER_PAGE: u64 = 0x22_0000 / BLOCK;

    /// What to boot.
    pub fn guest(&self, memory_bytes: u64) -> Guest {
        let kernel = executable(CODE, &[u64::from(self.vcpus), self.pages, PAGES_AT, self.records]);
        Guest { kernel, vcpus: self.vcpus, memory_bytes, disk_bytes: self.records.max(1) * BLOCK }
    }
}

impl Told {
    /// What `byte` says.
    pub fn from_byte(byte: u8) -> Self {
        const WHAT: [&str; 6] = [
            "an SSE register is of another instant",
            "a page is of another instant",
            "a page is another twin's",
            "a record on the disk is of another instant",
            "a record on the disk is another twin's",
            "the disk refused a request",
        ];
        match byte >> 6 {
            0 | 1 => Self::Lap(byte >> 4, byte & 15),
            2 => Self::Ready(byte & 7),
            _ => Self::Broken(byte >> 3 & 7, WHAT.get(usize::from(byte & 7)).unwrap_or(&"something")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    /// That `code` is made from `source`, a file beside this one.
    pub(crate) fn assert_assembled(source: &str, code: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
        let (object, bytes) = (dir.path().join("object"), dir.path().join("bytes"));
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        if !run(Command::new("as").arg("--64").arg(source).arg("-o").arg(&object)) {
            eprintln!("skipped: no GNU assembler for x86-64");
            return;
        }
        assert!(run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(object).arg(&bytes)));
        assert_eq!(std::fs::read(bytes).unwrap(), code);
    }

    #[test]
    fn the_bytes_are_what_the_source_says() {
        assert_assembled("witness.s", CODE);
    }

    #[test]
    fn a_byte_says_one_thing() {
        assert_eq!(Told::from_byte(0x15), Told::Lap(1, 5));
        assert_eq!(Told::from_byte(0x81), Told::Ready(1));
        assert_eq!(Told::from_byte(0xc0 | 1 << 3 | 4), Told::Broken(1, "a record on the disk is another twin's"));
    }
}
