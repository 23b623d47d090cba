//! Bytes a second from a guest to the world, against QEMU's network card on the same tap.

use crate::MEMORY;
use crate::qemu::{Qemu, Vhost};
use crate::world::{Sink, WORLD, World};
use pando_bench::{ApiError, Daemon, bound, median};
use pando_wire::api::NetworkMode;
use std::error::Error;
use std::thread;

/// What is sent each time.
const MIB: u64 = 32;
/// Where each listens.
const OURS: u16 = 5001;
const THEIRS: u16 = 5002;
const WITH_VHOST: u16 = 5003;

/// Sends in turns.
pub(crate) fn report(daemon: &Daemon, image: &str, rounds: usize) -> Result<(), Box<dyn Error>> {
    let world = World::make()?;
    let (ours, theirs, with_vhost) = (world.listen(OURS)?, world.listen(THEIRS)?, world.listen(WITH_VHOST)?);
    daemon.boot_in("sender", image, MEMORY, NetworkMode::Nat)?;
    let qemu = Qemu::start(MEMORY, &sender("/bin/busybox ", THEIRS), Vhost::Off)?;
    let (mine, other) = in_turns(daemon, &ours, &theirs, rounds)?;
    drop(qemu);
    println!(
        "{MIB} MiB from a guest to the host's side, one connection, one vCPU: medians of {rounds}, bytes a second"
    );
    println!("  pando                                       {:>12}", speed(mine));
    println!("  QEMU's card on the same tap, vhost off      {:>12}", speed(other));
    let ratio = mine as f64 / other.max(1) as f64;
    bound("pando, against QEMU without vhost", &format!("{ratio:.2} x"), ">= 0.9 x", ratio >= 0.9);
    match Qemu::start(MEMORY, &sender("/bin/busybox ", WITH_VHOST), Vhost::On) {
        Ok(_qemu) => {
            let (mine, other) = in_turns(daemon, &ours, &with_vhost, rounds)?;
            println!("  QEMU's card, vhost on                       {:>12}", speed(other));
            println!("  ... and pando in the same rounds            {:>12}", speed(mine));
        }
        Err(error) => println!("  with vhost on: {error}"),
    }
    Ok(daemon.remove("sender")?)
}

/// The command that sends, where `busybox` is how its programs are called.
fn sender(busybox: &str, port: u16) -> String {
    format!("{busybox}nc {WORLD} {port} -e {busybox}dd if=/dev/zero bs=64k count={}", MIB * 16)
}

/// Medians of what the daemon's VM and the other one send. That one sends all the time: while nobody accepts, it waits.
fn in_turns(daemon: &Daemon, ours: &Sink, theirs: &Sink, rounds: usize) -> Result<(u64, u64), Box<dyn Error>> {
    let (mut mine, mut other) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (their_speed, their_len) = theirs.take()?;
        let own = sender("/bin/", OURS);
        let sent: Result<_, ApiError> = thread::scope(|scope| {
            let taken = scope.spawn(|| ours.take());
            daemon.exec("sender", &["sh", "-c", &own])?;
            Ok(taken.join().map_err(|_| ApiError::Answer("a thread panicked".into()))??)
        });
        let (own_speed, own_len) = sent?;
        for len in [their_len, own_len] {
            if len < MIB << 20 {
                return Err(format!("{len} bytes arrived").into());
            }
        }
        // In the first round one of them had just begun.
        if round > 0 {
            mine.push(own_speed);
            other.push(their_speed);
        }
    }
    Ok((median(&mut mine), median(&mut other)))
}

fn speed(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
