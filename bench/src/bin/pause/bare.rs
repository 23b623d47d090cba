//! What a fork of a VM is held against: `fork(2)` of a process that has the same memory and is nothing else.

use pando_memory::ram_ranges;
use pando_sys::{fork, guest_memory};
use rustix::process::{WaitOptions, waitpid};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio, exit};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

/// The first argument that makes a process of this program a bare one.
pub(crate) const ARGUMENT: &str = "bare";
const PAGE: usize = 4096;

/// Such a process. It ends when this is dropped.
pub(crate) struct Bare {
    process: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Bare {
    /// Starts one with `memory_bytes`, mapped as a guest's and touched.
    pub(crate) fn start(memory_bytes: u64) -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &memory_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(ask), Some(answer)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut bare = Self { process, ask, answer: BufReader::new(answer) };
        bare.fork_us()?; // It answers when all is touched.
        Ok(bare)
    }

    /// Has it fork once. How long the call took in the parent, in microseconds.
    pub(crate) fn fork_us(&mut self) -> io::Result<u64> {
        self.ask.write_all(b"\n")?;
        let mut line = String::new();
        self.answer.read_line(&mut line)?;
        line.trim().parse().map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other side: forks once per line of standard input, one child at a time.
pub(crate) fn serve(memory_bytes: u64) -> Result<(), Box<dyn Error>> {
    let ranges = ram_ranges(memory_bytes)?;
    let memory = guest_memory(&ranges)?;
    for (start, len) in ranges {
        for address in (start..start + len).step_by(PAGE) {
            memory.write_obj(1u8, GuestAddress(address))?;
        }
    }
    for line in io::stdin().lines() {
        line?;
        let start = Instant::now();
        let (child, _) = fork(Vec::new(), |_| exit(0))?;
        let us = start.elapsed().as_micros();
        waitpid(Some(child), WaitOptions::empty())?;
        println!("{us}");
    }
    Ok(())
}
