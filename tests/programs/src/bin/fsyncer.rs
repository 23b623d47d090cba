//! Writes records that are durable when it says so, and looks for them later.
//!
//! ```text
//! fsyncer write FILE COUNT    append record after record; print each number once fdatasync(2) has returned
//! fsyncer check FILE NUMBER   exit 0 when records 1 to NUMBER are there; more may be, the last of them torn
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

const RECORD: usize = 512;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["write", file, count] => number(count).and_then(|count| write(Path::new(file), count)),
        ["check", file, count] => number(count).and_then(|count| check(Path::new(file), count)),
        _ => Err("usage: fsyncer write FILE COUNT | fsyncer check FILE NUMBER".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("fsyncer: {why}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error| format!("{text:?} is no number: {error}"))
}

fn write(path: &Path, count: u64) -> Result<(), String> {
    let endure = || -> io::Result<()> {
        let mut file = File::create(path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?; // Its name is durable as well.
        }
        let mut stdout = io::stdout();
        for number in 1..=count {
            file.write_all(&record(number))?;
            file.sync_data()?;
            writeln!(stdout, "{number}")?;
            stdout.flush()?;
        }
        Ok(())
    };
    endure().map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn check(path: &Path, count: u64) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let (found, _torn) = bytes.as_chunks::<RECORD>();
    let wrong = (1..=count).zip(1_usize..).find(|&(number, nth)| found.get(nth - 1) != Some(&record(number)));
    match wrong {
        Some((number, _)) => {
            Err(format!("record {number} of {count} is not there; the file has {} bytes", bytes.len()))
        }
        None => {
            println!("{} records, {count} asked for", found.len());
            Ok(())
        }
    }
}

/// The number in every word.
fn record(number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    for (place, word) in (0..).zip(record.as_chunks_mut::<8>().0) {
        *word = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ place).to_le_bytes();
    }
    record
}
