//! `pando ls`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::out;
use crate::render::{self, Table};
use pando_wire::api::{Published, Vm};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// List VMs, oldest first.
#[derive(clap::Args)]
#[command(
    visible_alias = "ps",
    after_help = "\
Names are cut where a line would not fit the terminal; nothing is cut in a pipe.

Examples:
  pando ls
  pando ls --wide                   # cut nothing
  pando ls -q --running             # names only, of those that run
  pando ls -o json"
)]
pub(crate) struct Args {
    /// Only VMs that are not stopped.
    #[arg(short, long)]
    running: bool,
    /// Only names.
    #[arg(short, long)]
    quiet: bool,
    /// Cut nothing.
    #[arg(short, long)]
    wide: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get("/vms").await?;
    if context.json() {
        out::json(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let vms: Vec<Vm> = body.read()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let width = if args.wide { None } else { out::width() };
    out::print(&render(&vms, &args, now_ms, width))?;
    Ok(ExitCode::SUCCESS)
}

fn render(vms: &[Vm], args: &Args, now_ms: i64, width: Option<usize>) -> String {
    let mut shown: Vec<_> = vms.iter().filter(|vm| !args.running || !vm.state.is_at_rest()).collect();
    shown.sort_by_key(|vm| (vm.created_ms, &vm.id));
    if args.quiet {
        return shown.into_iter().map(|vm| format!("{}\n", vm.name)).collect();
    }
    let has_ports = shown.iter().any(|vm| !vm.published.is_empty());
    let headings = ["NAME…", "STATE", "CPUS", "MEMORY", "PARENT…", "AGE"];
    let mut table = Table::new(headings.into_iter().chain(has_ports.then_some("PUBLISHED…")));
    for vm in shown {
        let mut row = vec![
            vm.name.clone(),
            render::state(vm.state).to_owned(),
            vm.cpus.to_string(),
            render::bytes(vm.memory_bytes),
            parent(vm, vms),
            render::age(vm.created_ms, now_ms),
        ];
        row.extend(has_ports.then(|| ports(vm)));
        table.row(row);
    }
    table.render(width)
}

/// The ports of the host that are a VM's.
fn ports(vm: &Vm) -> String {
    let ports: Vec<_> = vm.published.iter().map(Published::to_string).collect();
    if ports.is_empty() { "-".to_owned() } else { ports.join(", ") }
}

/// The name of a VM's parent, or its id once it is removed.
fn parent(vm: &Vm, vms: &[Vm]) -> String {
    let Some(parent) = &vm.parent else {
        return "-".to_owned();
    };
    vms.iter().find(|vm| vm.id == *parent).map_or_else(|| parent.clone(), |vm| vm.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture::vm;
    use pando_wire::api::State;

    const PLAIN: Args = Args { running: false, quiet: false, wide: false };

    #[test]
    fn vms_are_listed_oldest_first_with_their_parents_by_name() {
        let vms = [vm("review.1", Some("web"), 60_000), vm("web", None, 0), vm("orphan", Some("gone"), 90_000)];
        let expected = "\
NAME      STATE    CPUS  MEMORY   PARENT   AGE
web       running  2     512 MiB  -        3m
review.1  running  2     512 MiB  web      2m
orphan    running  2     512 MiB  id-gone  90s
";
        assert_eq!(render(&vms, &PLAIN, 180_000, Some(80)), expected);
    }

    #[test]
    fn ports_of_the_host_are_shown_where_a_vm_has_some() {
        let mut vms = [vm("web", None, 0), vm("other", None, 1)];
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        vms[0].published = vec![Published { address, host_port: 8080, guest_port: 80, problem: None }];
        let expected = "\
NAME   STATE    CPUS  MEMORY   PARENT  AGE  PUBLISHED
web    running  2     512 MiB  -       0s   127.0.0.1:8080 -> 80
other  running  2     512 MiB  -       0s   -
";
        assert_eq!(render(&vms, &PLAIN, 1, None), expected);
    }

    #[test]
    fn the_longest_names_fit_80_columns() {
        let (long, longer) = ("b".repeat(63), "a".repeat(63));
        let vms = [vm(&long, None, 0), vm(&longer, Some(&long), 1)];
        let text = render(&vms, &PLAIN, 0, Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(render(&vms, &PLAIN, 0, None).contains(&longer));
    }

    #[test]
    fn quiet_prints_names_and_running_leaves_out_what_is_stopped() {
        let mut vms = [vm("a", None, 0), vm("b", None, 1)];
        vms[0].state = State::Stopped;
        assert_eq!(render(&vms, &Args { running: true, quiet: true, wide: false }, 0, None), "b\n");
    }
}
