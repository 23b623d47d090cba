//! What the network of a Linux VM costs: its URL, many networks at once, a wake by a request, and bytes a second. Needs root,
//! `nft`, `ip` and hardware KVM, or an emulated host that has it.
//!
//! ```text
//! net [PANDO [ROUNDS [PART...]]]     PANDO is the program, target/release/pando when absent; ROUNDS per median, 8 when
//!                                    absent; PARTs are url, burst and speed, all when absent
//! ```
//!
//! The kernel of guests must be in the daemon's cache. In an emulated host all times are 10 to 20 times too long; what holds are
//! ratios, and both sides of each are of the same run, in turns.

mod burst; // many forks at once
mod preview; // a VM's port, as a browser sees it
mod qemu; // the other hypervisor
mod speed; // bytes a second
mod world; // where guests send to

use pando_bench::{ApiError, Daemon, bound, median, took};
use pando_wire::api::{ChildSpec, ForkReport, ForkRequest, Vm};
use preview::Preview;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What can be measured by itself.
const PARTS: [&str; 3] = ["url", "burst", "speed"];
/// RAM of guests.
const MEMORY: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pando = PathBuf::from(args.first().map_or("target/release/pando", String::as_str));
    let rounds: usize = args.get(1).map_or(Ok(8), |count| count.parse())?;
    let parts = args.get(2..).unwrap_or_default();
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("there is no part {unknown}; there are {}", PARTS.join(", ")).into());
    }
    if let Some(lack) = pando_sys::network_lack() {
        println!("skipped: {lack}");
        return Ok(());
    }
    let daemon = Daemon::start(&pando, &["--previews", "127.0.0.1:0"])?;
    let image = daemon.import()?;
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if is_wanted("url") {
        report_urls(&daemon, &image, rounds)?;
    }
    if is_wanted("burst") {
        burst::report(&daemon, &image)?;
    }
    if is_wanted("speed") {
        speed::report(&daemon, &image, rounds)?;
    }
    Ok(())
}

/// A VM that has a URL.
fn report_urls(daemon: &Daemon, image: &str, rounds: usize) -> Result<(), ApiError> {
    daemon.boot("web", image, MEMORY)?;
    preview::serve(daemon, "web")?;
    report_fork(daemon, rounds)?;
    report_wake(daemon, rounds.div_ceil(2))?;
    daemon.remove("web")
}

/// A child's first answer by its URL, and its first program.
fn report_fork(daemon: &Daemon, rounds: usize) -> Result<(), ApiError> {
    let (mut answered, mut executed) = (Vec::new(), Vec::new());
    // The first fork of a VM teaches what its children write, and is nobody's figure.
    for round in 0..=rounds {
        let seen = timed(|| {
            let child = fork(daemon, "web")?;
            Preview::open(daemon, &child)?.get()?;
            Ok(child)
        })?;
        let used = timed(|| {
            let child = fork(daemon, "web")?;
            daemon.exec(&child, &["/bin/true"])?;
            Ok(child)
        })?;
        for (child, us, all) in [(seen.0, seen.1, &mut answered), (used.0, used.1, &mut executed)] {
            daemon.remove(&child)?;
            if round > 0 {
                all.push(us);
            }
        }
    }
    println!("A fork into one child: medians of {rounds}");
    let (answered, executed) = (median(&mut answered), median(&mut executed));
    println!("  until its URL was opened and had answered   {:>12}", took(answered));
    println!("  until /bin/true had run                     {:>12}", took(executed));
    at_most("the URL, against the program", answered, executed, 1.5);
    println!();
    Ok(())
}

/// A VM that sleeps, woken by who looks at it, and by who says so.
fn report_wake(daemon: &Daemon, rounds: usize) -> Result<(), ApiError> {
    let preview = Preview::open(daemon, "web")?;
    let (mut answered, mut executed) = (Vec::new(), Vec::new());
    let asleep = || daemon.call::<Vm>("POST", "/vms/web/hibernate", &());
    let look = || asleep().and_then(|_| timed(|| preview.get()));
    let wake = || {
        asleep()?;
        timed(|| {
            let _: Vm = daemon.call("POST", "/vms/web/wake", &())?;
            daemon.exec("web", &["/bin/true"])
        })
    };
    for round in 0..=rounds {
        // Each is the first one as often as the other.
        let (((), seen), ((), used)) = match round % 2 {
            0 => (look()?, wake()?),
            _ => {
                let used = wake()?;
                (look()?, used)
            }
        };
        // What a VM needs first is learned by its first wake.
        if round > 0 {
            answered.push(seen);
            executed.push(used);
        }
    }
    println!("A VM that sleeps: medians of {rounds}");
    let (answered, executed) = (median(&mut answered), median(&mut executed));
    println!("  a request, until the first byte             {:>12}", took(answered));
    println!("  wake, until /bin/true had run               {:>12}", took(executed));
    at_most("the request, against the program", answered, executed, 1.3);
    println!();
    Ok(())
}

/// Forks into one child; its name.
fn fork(daemon: &Daemon, name: &str) -> Result<String, ApiError> {
    let report = fork_into(daemon, name, 1)?;
    let child = report.children.into_iter().next().ok_or(ApiError::Answer("no child".into()))?;
    child.error.map_or(Ok(child.name), |error| Err(ApiError::Refused(error)))
}

fn fork_into(daemon: &Daemon, name: &str, count: usize) -> Result<ForkReport, ApiError> {
    let request = ForkRequest { children: vec![ChildSpec::default(); count], via: None };
    daemon.call("POST", &format!("/vms/{name}/fork"), &request)
}

/// What came of `work`, and how long it took, in microseconds.
fn timed<T>(work: impl FnOnce() -> Result<T, ApiError>) -> Result<(T, u64), ApiError> {
    let begun = Instant::now();
    Ok((work()?, us(begun.elapsed())))
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Prints how many times `against` a figure is, and whether that is at most `limit`.
fn at_most(what: &str, figure: u64, against: u64, limit: f64) {
    let ratio = figure as f64 / against.max(1) as f64;
    bound(what, &format!("{ratio:.2} x"), &format!("<= {limit} x"), ratio <= limit);
}
