//! `pando fork`.

use super::children::{self, MAX_COUNT};
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::render::{self, Table};
use crate::{complete, out, parse};
use pando_wire::api::{ForkReport, Via};
use std::process::ExitCode;

/// The page size that [`ForkReport::shared_pages`] counts in.
const PAGE: u64 = 4096;

/// Copy a running VM, processes and all.
///
/// The copies run on from the same instant as the VM itself, each with its own name.
#[derive(clap::Args)]
#[command(after_help = "\
Prints the name of every child that runs, one per line. A child that failed does not fail the others, but the \
exit status is then 1.

Examples:
  pando fork web
  pando fork web --count 3 --prefix review -e BRANCH=fix-login   # review.1 …
  pando fork web --name candidate --timings
  pando fork web --via pager   # shares nothing with web in the end")]
pub(crate) struct Args {
    /// Name or id of the VM to copy.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// How many copies.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,
    /// Name of the copy, when there is one.
    #[arg(short, long, value_parser = parse::name(), conflicts_with_all = ["prefix", "count"])]
    name: Option<String>,
    /// Name the copies PREFIX.1, PREFIX.2 and so on; the next free numbers behind the parent's name when absent.
    #[arg(short, long, value_parser = parse::name())]
    prefix: Option<String>,
    /// A variable for every exec in the copies and for their fork hooks; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// By which way the copies come by what the VM is.
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    via: Way,
    /// Print where the time went instead of names.
    #[arg(long)]
    timings: bool,
}

/// As [`Via`], in clap's words.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// Memory and disk are shared for as long as nobody writes.
    #[default]
    Fork,
    /// A copy pulls what it touches, then the rest, and shares nothing with the VM in the end; 20 at most.
    Pager,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let client = Client::open().await?;
    let env = args.env.iter().cloned().collect();
    let mut request = children::request(args.count, args.name.as_deref(), args.prefix.as_deref(), &env);
    if args.via == Way::Pager {
        request.via = Some(Via::Pager); // A daemon of an earlier build knows of no other way than `fork`.
    }
    let body = client.post_json(&format!("/vms/{}/fork", segment(&args.vm)), &request).await?;
    let report: ForkReport = body.read()?;
    if context.json() {
        out::json(&body)?;
    } else if args.timings {
        out::print(&timings(&report, out::width()))?;
    } else {
        out::print(&children::names(&report.children))?;
        out::note(&format!("{}\n", summary(&report)));
    }
    Ok(children::tell(&warnings(&report), &report.children))
}

/// What the children may have in common that they should not.
fn warnings(report: &ForkReport) -> Vec<String> {
    if report.barrier_us.is_none() {
        let parent = &report.parent;
        return vec![format!(
            "the programs of {parent} did not stand still: a random number may have been drawn in more than one VM"
        )];
    }
    children::warnings(&report.children)
}

/// What it cost, in one line.
fn summary(report: &ForkReport) -> String {
    let gap = report.guest_gap_us.map(|us| format!(", seen in the guest as {}", render::micros(us)));
    let shared = render::bytes(report.shared_pages.saturating_mul(PAGE));
    format!("paused {}{}, shared {shared}", render::micros(report.pause_us), gap.unwrap_or_default())
}

/// Where the time went: the parent's, then each child's.
fn timings(report: &ForkReport, width: Option<usize>) -> String {
    let mut parent = Table::new(["PARENT…", "ARRIVE", "PREPARE", "BARRIER", "PAUSE"]);
    let or_dash = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), render::micros);
    let phases = [Some(report.arrive_us), Some(report.prepare_us), report.barrier_us, Some(report.pause_us)];
    parent.row(std::iter::once(report.parent.clone()).chain(phases.map(or_dash)).collect());
    let mut pause = Table::new(["PARK", "SAVE", "SEAL", "FORK", "RESUME"]);
    let phases = [report.park_us, report.save_us, report.seal_us, report.fork_us, report.resume_us];
    pause.row(phases.map(render::micros).into());

    // The phases that are documented come in the order of their happening; others that a daemon knows, after them.
    let mut phases = vec!["seed", "wait", "copy", "create_vm", "memory", "vcpus", "map", "devices", "agent"];
    phases.retain(|&phase| report.children.iter().any(|child| child.phases_us.contains_key(phase)));
    for phase in report.children.iter().flat_map(|child| child.phases_us.keys()) {
        // What the other phases add up to is left to JSON.
        if phase != "total" && !phases.contains(&phase.as_str()) {
            phases.push(phase);
        }
    }
    let headings = ["CHILD…".to_owned(), "READY".to_owned()];
    let mut children = Table::new(headings.into_iter().chain(phases.iter().map(|phase| heading(phase))));
    for child in &report.children {
        let cells = phases.iter().map(|&phase| or_dash(child.phases_us.get(phase).copied()));
        children.row([child.name.clone(), or_dash(child.ready_us)].into_iter().chain(cells).collect());
    }
    let [parent, pause, children] = [parent, pause, children].map(|table| table.render(width));
    format!("{parent}\n{pause}\n{children}\n{}\n", summary(report))
}

/// A phase as a heading that leaves room for the others: `create_vm` is `CREATE`.
fn heading(phase: &str) -> String {
    phase.trim_end_matches("_vm").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use children::{failure, names};
    use pando_wire::api::ChildReport;
    use std::collections::BTreeMap;

    fn child(name: &str) -> ChildReport {
        let phases = ["seed", "wait", "create_vm", "memory", "vcpus", "devices", "total", "agent"];
        ChildReport {
            name: name.to_owned(),
            id: Some("id".to_owned()),
            ready_us: Some(12_345),
            phases_us: phases.into_iter().zip(10..).map(|(phase, us)| (phase.to_owned(), us)).collect(),
            reseeded: Some(true),
            error: None,
        }
    }

    fn report() -> ForkReport {
        ForkReport {
            parent: "web".to_owned(),
            arrive_us: 90,
            prepare_us: 900,
            barrier_us: Some(700),
            pause_us: 410,
            park_us: 100,
            save_us: 50,
            seal_us: 10,
            fork_us: 200,
            resume_us: 50,
            guest_gap_us: Some(1_230),
            shared_pages: 131_072,
            expected_pages: 300,
            children: vec![
                child("review.1"),
                ChildReport {
                    id: None,
                    ready_us: None,
                    phases_us: BTreeMap::new(),
                    reseeded: None,
                    error: Some("the name is taken".to_owned()),
                    ..child("review.2")
                },
            ],
        }
    }

    #[test]
    fn only_children_that_run_are_named_and_the_others_say_why() {
        let report = report();
        assert_eq!(names(&report.children), "review.1\n");
        assert_eq!(summary(&report), "paused 410 µs, seen in the guest as 1.23 ms, shared 512 MiB");
        assert!(failure(&report.children[0]).is_none() && failure(&report.children[1]).is_some());
    }

    #[test]
    fn what_children_may_have_in_common_is_said_once_or_for_each() {
        let mut report = report();
        assert!(warnings(&report).is_empty());
        report.children.iter_mut().for_each(|child| child.reseeded = Some(false));
        assert_eq!(warnings(&report).len(), 2);
        assert!(warnings(&report)[0].starts_with("review.1: "));
        report.barrier_us = None;
        assert_eq!(warnings(&report).len(), 1);
        assert!(timings(&report, Some(80)).contains("web     90 µs   900 µs   -        410 µs"));
    }

    #[test]
    fn the_phases_come_in_the_order_of_their_happening() {
        let expected = "\
PARENT  ARRIVE  PREPARE  BARRIER  PAUSE
web     90 µs   900 µs   700 µs   410 µs

PARK    SAVE   SEAL   FORK    RESUME
100 µs  50 µs  10 µs  200 µs  50 µs

CHILD     READY    SEED   WAIT   CREATE  MEMORY  VCPUS  DEVICES  AGENT
review.1  12.3 ms  10 µs  11 µs  12 µs   13 µs   14 µs  15 µs    17 µs
review.2  -        -      -      -       -       -      -        -

paused 410 µs, seen in the guest as 1.23 ms, shared 512 MiB
";
        assert_eq!(timings(&report(), Some(80)), expected);
    }

    #[test]
    fn the_longest_names_and_times_fit_80_columns() {
        let mut report = report();
        report.parent = "p".repeat(63);
        for child in &mut report.children {
            child.name = "c".repeat(63);
            child.phases_us.values_mut().for_each(|us| *us = 99_999);
        }
        let text = timings(&report, Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
