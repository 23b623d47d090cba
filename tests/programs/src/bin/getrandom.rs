//! Draws random numbers: `getrandom FILE LINES PAUSE_US`. Each line is the time of `CLOCK_MONOTONIC` right before the number
//! was drawn, in nanoseconds, and the number. It stops after so many lines, and rests between two. A program that is made to
//! stand still is then nearly always so between two lines.

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

fn main() -> ExitCode {
    match draw() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("getrandom: {error}");
            ExitCode::FAILURE
        }
    }
}

fn draw() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(lines), Some(pause)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: getrandom FILE LINES PAUSE_US".into());
    };
    let pause = Duration::from_micros(pause.parse()?);
    let mut file = File::create(path)?;
    for _ in 0..lines.parse::<u64>()? {
        let now = clock_gettime(ClockId::Monotonic);
        let mut bytes = [0; 16];
        let len = getrandom(&mut bytes, GetRandomFlags::empty())?;
        if len != bytes.len() {
            return Err(format!("{len} random bytes instead of {}", bytes.len()).into());
        }
        let nanoseconds = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        file.write_all(format!("{nanoseconds} {:032x}\n", u128::from_le_bytes(bytes)).as_bytes())?;
        sleep(pause);
    }
    Ok(())
}
