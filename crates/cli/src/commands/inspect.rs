//! `pando inspect`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse, render};
use pando_wire::api::{Network, NetworkMode, Passed, Published, Vm};
use pando_wire::duration;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Show everything about a VM, with what its memory costs.
#[derive(clap::Args)]
#[command(after_help = "\
Memory is that of the VM's process on the host: resident counts every page that it maps, shared or not; \
proportional divides a shared page by its sharers; private pages are nobody else's. Sleepless is why it does not \
hibernate though it is idle. Outside is the address that tells it apart on the host; what its network refused is told by \
reason and packets, since the VM began.

Examples:
  pando inspect web
  pando inspect -o json web")]
pub(crate) struct Args {
    /// Name or id of a VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get(&format!("/vms/{}", segment(&args.vm))).await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&render(&body.read()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(vm: &Vm) -> String {
    let mut lines = vec![
        ("name", vm.name.clone()),
        ("id", vm.id.clone()),
        ("state", render::state(vm.state).to_owned()),
        ("created", format!("{} UTC", render::timestamp(vm.created_ms))),
        ("image", vm.image.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory", render::bytes(vm.memory_bytes)),
    ];
    let mut add = |label, value: Option<String>| lines.extend(value.map(|value| (label, value)));
    add("ending", vm.ending.clone());
    add("idle timeout", vm.idle_timeout_ms.map(idle_timeout));
    add("sleepless", vm.sleepless.clone());
    add("network", Some(network(&vm.network)));
    add("outside", vm.traffic.as_ref().map(|traffic| traffic.outside.clone()));
    add("sent", vm.traffic.as_ref().map(|traffic| passed(traffic.sent)));
    add("received", vm.traffic.as_ref().map(|traffic| passed(traffic.received)));
    add("refused", vm.traffic.as_ref().and_then(|traffic| refused(&traffic.refused)));
    for port in &vm.published {
        add("published", Some(published(port)));
    }
    add("parent", vm.parent.clone());
    add("command", (!vm.command.is_empty()).then(|| vm.command.join(" ")));
    add("process", vm.pid.map(|pid| pid.to_string()));
    add("resident", vm.usage.map(|usage| render::bytes(usage.rss_bytes)));
    add("proportional", vm.usage.map(|usage| render::bytes(usage.pss_bytes)));
    add("private", vm.usage.map(|usage| render::bytes(usage.private_bytes)));
    for (name, value) in &vm.env {
        add("env", Some(format!("{name}={value}")));
    }
    lines.into_iter().map(|(label, value)| format!("{label:12}  {}\n", render::printable(&value))).collect()
}

fn idle_timeout(ms: u64) -> String {
    if ms == 0 { "off".to_owned() } else { duration::show(Duration::from_millis(ms)) }
}

/// A port of the host that is its own, and why not, when that is so.
fn published(port: &Published) -> String {
    let problem = port.problem.as_ref().map(|problem| format!(", not now: {problem}"));
    format!("{port}{}", problem.unwrap_or_default())
}

/// What it reaches.
pub(super) fn network(network: &Network) -> String {
    let mode = match network.mode {
        NetworkMode::None => "none",
        NetworkMode::Nat => "nat",
        NetworkMode::Isolated => "isolated",
    };
    let lists = [("allow", &network.allow), ("deny", &network.deny)].into_iter().filter(|(_, list)| !list.is_empty());
    let lists = lists.map(|(label, list)| format!("{label} {}", list.join(" ")));
    let rate = network.rate_bytes.map(|rate| format!("at most {} a second", render::bytes(rate)));
    [mode.to_owned()].into_iter().chain(lists).chain(rate).collect::<Vec<_>>().join(", ")
}

fn passed(passed: Passed) -> String {
    let noun = if passed.packets == 1 { "packet" } else { "packets" };
    format!("{} in {} {noun}", render::bytes(passed.bytes), passed.packets)
}

/// Why packets were refused and how many, if any were: most first.
fn refused(refused: &BTreeMap<String, u64>) -> Option<String> {
    let mut refused: Vec<_> = refused.iter().collect();
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let texts: Vec<_> =
        refused.into_iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture::vm;
    use pando_wire::api::{Traffic, Usage};
    use std::net::Ipv4Addr;

    #[test]
    fn what_a_vm_does_not_have_is_not_shown() {
        let mut vm = vm("web", None, 0);
        vm.image = "d1".to_owned();
        let plain = "\
name          web
id            id-web
state         running
created       1970-01-01 00:00:00 UTC
image         d1
cpus          2
memory        512 MiB
network       none
process       1
";
        assert_eq!(render(&vm), plain);

        vm.usage = Some(Usage { rss_bytes: 3 << 20, pss_bytes: 2 << 20, private_bytes: 1 << 20 });
        vm.idle_timeout_ms = Some(600_000);
        vm.network = Network { mode: NetworkMode::Nat, deny: vec!["10.0.0.0/8".into()], ..Network::default() };
        vm.traffic = Some(Traffic {
            outside: "10.241.0.1".into(),
            sent: Passed { packets: 1, bytes: 42 },
            received: Passed { packets: 1200, bytes: 3 << 20 },
            refused: BTreeMap::from([("range".into(), 1), ("to_host".into(), 7)]),
        });
        let port =
            |problem| Published { address: Ipv4Addr::LOCALHOST.into(), host_port: 8080, guest_port: 80, problem };
        vm.published = vec![port(None), port(Some("taken".to_owned()))];
        vm.env.insert("A".to_owned(), "1".to_owned());
        let more = "idle timeout  10m\nnetwork       nat, deny 10.0.0.0/8\noutside       10.241.0.1\nsent          42 B in 1 packet\nreceived      3 MiB in 1200 packets\nrefused       7 to host, 1 range\npublished     127.0.0.1:8080 -> 80\npublished     127.0.0.1:8080 -> 80, not now: taken\nprocess       1\nresident      3 MiB\nproportional  2 MiB\nprivate       1 MiB\nenv           A=1\n";
        let plain = plain.trim_end_matches("network       none\nprocess       1\n");
        assert_eq!(render(&vm), format!("{plain}{more}"));
    }
}
