//! What a fork of a running Linux VM costs, against its boot. Needs hardware KVM, or an emulated host that has it.
//!
//! ```text
//! linux [PANDO [FORKS]]     PANDO is the program, target/release/pando when absent; FORKS per median, 10 when
//!                           absent; half as many for guests that are not looked at more closely
//! ```
//!
//! The kernel of guests must be in the daemon's cache. In an emulated host all times are 10 to 20 times too long; what
//! holds are ratios, and figures of memory.

mod guest; // a VM of a daemon

use guest::{Forked, Guest};
use pando_bench::{ApiError, Daemon, bound, median, median_of, mib, percentile, row, table, took};
use pando_wire::api::{ForkReport, Usage, Vm};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

/// RAM of guests.
const SIZES: [u64; 3] = [256 << 20, 512 << 20, 2 << 30];
/// The one that is looked at more closely.
const CLOSER: u64 = 512 << 20;
/// Boots per size; the quickest counts.
const BOOTS: usize = 2;
/// Children of the one large fork.
const CHILDREN: usize = 50;
/// What children are given to calm down before their memory is counted.
const CALM: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pando = PathBuf::from(args.first().map_or("target/release/pando", String::as_str));
    let forks: usize = args.get(1).map_or(Ok(10), |count| count.parse())?;
    let daemon = Daemon::start(&pando, &[])?;
    let image = daemon.import()?;
    let mut measured = Vec::new();
    for size in SIZES {
        let (guest, boot_us) = boot(&daemon, &image, size)?;
        let forks = if size == CLOSER { forks } else { forks.div_ceil(2) };
        let forked = (0..forks).map(|_| guest.fork()).collect::<Result<Vec<_>, _>>()?;
        report_ratios(size, boot_us, &forked);
        if size == CLOSER {
            report_gaps(&guest, &forked)?;
            report_many(&daemon, &guest)?;
        }
        guest.remove()?;
        measured.push((size, forked));
    }
    report_phases(&measured);
    Ok(())
}

/// Boots a few times, and leaves the last running. The quickest boot is what forks are held against.
fn boot<'d>(daemon: &'d Daemon, image: &str, size: u64) -> Result<(Guest<'d>, u64), ApiError> {
    let (mut guest, mut least_us) = Guest::boot(daemon, image, size)?;
    for _ in 1..BOOTS {
        guest.remove()?;
        let (again, us) = Guest::boot(daemon, image, size)?;
        guest = again;
        least_us = least_us.min(us);
    }
    Ok((guest, least_us))
}

fn report_ratios(size: u64, boot_us: u64, forked: &[Forked]) {
    let mut ready: Vec<_> = forked.iter().flat_map(|fork| ready_us(&fork.report)).collect();
    let returned_us = median_of(forked, |fork| fork.returned_us);
    let mut executed: Vec<_> = forked.iter().map(|fork| fork.executed_us).collect();
    let (ready_us, executed_us) = (median(&mut ready), median(&mut executed));
    println!(
        "A Linux VM with {} of RAM: the quickest of {BOOTS} boots, {} forks into one child",
        mib(size),
        forked.len()
    );
    println!("  boot, to the agent's first answer           {:>12}", took(boot_us));
    println!(
        "  fork, to the agent's first answer           {:>12}   least {}",
        took(ready_us),
        took(percentile(&mut ready, 0))
    );
    if let Some(first) = forked.first() {
        println!(
            "  ... the first, of which nothing is expected {:>12}   the last: {} pages",
            took(ready_us_of(first)),
            forked.last().map_or(0, |last| last.report.expected_pages)
        );
    }
    println!("  fork, to the daemon's answer to the request {:>12}", took(returned_us));
    println!(
        "  fork, to the end of the first /bin/true     {:>12}   least {}",
        took(executed_us),
        took(percentile(&mut executed, 0))
    );
    println!(
        "  the parent's pause                          {:>12}",
        took(median_of(forked, |fork| fork.report.pause_us))
    );
    for (what, us, limit) in [("answer", ready_us, 50.0), ("first /bin/true", executed_us, 20.0)] {
        let ratio = boot_us as f64 / us.max(1) as f64;
        bound(
            &format!("boot against fork, to the {what}"),
            &format!("{ratio:.1} x"),
            &format!(">= {limit} x"),
            ratio >= limit,
        );
    }
    println!();
}

/// The longest gap that a heartbeat in the guest sees: in the forks of the idle guest, and in as many while it writes.
fn report_gaps(guest: &Guest<'_>, idle: &[Forked]) -> Result<(), ApiError> {
    guest.start_writer()?;
    let writing = idle.iter().map(|_| guest.fork()).collect::<Result<Vec<_>, _>>()?;
    guest.end_writer()?;
    println!(
        "The parent around a fork, {} of RAM, {} forks each: its pause, and the longest gap seen from inside",
        mib(CLOSER),
        idle.len()
    );
    let rows: Vec<_> =
        [("idle", idle), ("writing at full speed", &writing)].map(|(what, forked)| gap_row(what, forked)).into();
    table(&["guest", "pause p50", "pause max", "gap p50", "gap p99", "gap max", "seen"], &rows);
    println!();
    Ok(())
}

fn gap_row(what: &str, forked: &[Forked]) -> Vec<String> {
    let mut pauses: Vec<_> = forked.iter().map(|fork| fork.report.pause_us).collect();
    let mut gaps: Vec<_> = forked.iter().filter_map(|fork| fork.report.guest_gap_us).collect();
    let mut row = vec![what.to_owned()];
    row.extend([50, 100].map(|percent| took(percentile(&mut pauses, percent))));
    row.extend([50, 99, 100].map(|percent| took(percentile(&mut gaps, percent))));
    row.push(format!("{} of {}", gaps.len(), forked.len()));
    row
}

/// One fork into many, and what they cost.
fn report_many(daemon: &Daemon, guest: &Guest<'_>) -> Result<(), ApiError> {
    let forked = guest.fork_many(CHILDREN)?;
    let mut ready: Vec<_> = ready_us(&forked.report).collect();
    println!("One fork of it into {CHILDREN} children");
    for (what, count) in [("children that answer", ready.len()), ("children that ran /bin/true", forked.executed)] {
        bound(what, &count.to_string(), &format!("all {CHILDREN}"), count == CHILDREN);
    }
    if let Some(failure) = forked.failures.first() {
        println!("  the first of {} failures: {failure}", forked.failures.len());
    }
    println!("  until the first answered                    {:>12}", took(percentile(&mut ready, 0)));
    println!("  until the last answered                     {:>12}", took(percentile(&mut ready, 100)));
    println!("  until the last had run /bin/true            {:>12}", took(forked.executed_us));
    println!("  the parent's pause                          {:>12}", took(forked.report.pause_us));

    sleep(CALM);
    let mut usages = Vec::new();
    let running = || forked.report.children.iter().filter(|child| child.id.is_some());
    for child in running() {
        usages.extend(daemon.call::<Vm>("GET", &format!("/vms/{}", child.name), &())?.usage);
    }
    let of = |figure: fn(&Usage) -> u64| mib(median_of(&usages, figure));
    println!("  memory of an idle child: private            {:>12}", of(|usage| usage.private_bytes));
    println!("  ... proportional, a shared page divided     {:>12}", of(|usage| usage.pss_bytes));
    println!(
        "  ... shared with relatives                   {:>12}",
        of(|usage| usage.rss_bytes.saturating_sub(usage.private_bytes))
    );
    println!("  the parent's pages, shared after the fork   {:>12}\n", mib(forked.report.shared_pages * 4096));
    running().try_for_each(|child| daemon.remove(&child.name))
}

fn report_phases(measured: &[(u64, Vec<Forked>)]) {
    println!("Where a parent's pause goes: medians, in µs");
    let phases: [fn(&Forked) -> u64; 6] = [
        |fork| fork.report.pause_us,
        |fork| fork.report.park_us,
        |fork| fork.report.save_us,
        |fork| fork.report.seal_us,
        |fork| fork.report.fork_us,
        |fork| fork.report.resume_us,
    ];
    let phases_of =
        |(size, forked): &(u64, Vec<Forked>)| row(*size, phases.iter().map(|phase| median_of(forked, phase)));
    table(
        &["RAM", "pause", "park", "save", "seal", "fork", "resume"],
        &measured.iter().map(phases_of).collect::<Vec<_>>(),
    );

    println!(
        "\nWhere the time goes from the request until the child's agent answers, and until it has its identity: medians, in µs"
    );
    let from_request = |(size, forked): &(u64, Vec<Forked>)| {
        let child = |fork: &Forked, phase: &str| {
            let children = fork.report.children.iter();
            children.filter_map(|child| child.phases_us.get(phase).copied()).next().unwrap_or(0)
        };
        let parts = |fork: &Forked| {
            [fork.report.prepare_us, fork.report.barrier_us.unwrap_or(0), child(fork, "total"), child(fork, "agent")]
        };
        // What is between them: messages on their way, and the daemon's turn to run.
        let rest = |fork: &Forked| ready_us_of(fork).saturating_sub(parts(fork).iter().sum());
        let mut medians = vec![median_of(forked, ready_us_of)];
        medians.extend((0..4).map(|part| median_of(forked, |fork| parts(fork)[part])));
        medians.extend([median_of(forked, rest), median_of(forked, |fork| child(fork, "adopt"))]);
        row(*size, medians.into_iter())
    };
    table(
        &["RAM", "ready", "prepare", "barrier", "fork to run", "agent", "rest", "then adopt"],
        &measured.iter().map(from_request).collect::<Vec<_>>(),
    );

    println!("\nWhere a child's time goes, from the fork to its first instruction: medians, in µs");
    let head = ["RAM", "total", "seed", "wait", "copy", "create_vm", "memory", "vcpus", "map", "devices"];
    let of_children = |(size, forked): &(u64, Vec<Forked>)| {
        let phases: Vec<&BTreeMap<String, u64>> =
            forked.iter().flat_map(|fork| &fork.report.children).map(|child| &child.phases_us).collect();
        row(*size, head[1..].iter().map(|&phase| median_of(&phases, |of| of.get(phase).copied().unwrap_or(0))))
    };
    table(&head, &measured.iter().map(of_children).collect::<Vec<_>>());
}

/// Until the only child of a fork answered; 0 when it did not.
fn ready_us_of(fork: &Forked) -> u64 {
    ready_us(&fork.report).next().unwrap_or(0)
}

fn ready_us(report: &ForkReport) -> impl Iterator<Item = u64> {
    report.children.iter().filter_map(|child| child.ready_us)
}
