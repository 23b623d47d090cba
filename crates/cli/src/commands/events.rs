//! `pando events`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, render};
use pando_wire::api::{Event, Vm};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Show what happened to VMs.
///
/// That is: created, running, forked, checkpointed, stored and unstored (a checkpoint of it), paused, resumed, hibernated,
/// stopped, removed. One that hibernates because it is idle says so.
#[derive(clap::Args)]
#[command(after_help = "\
With -o json every event is one line.

Examples:
  pando events
  pando events -f --after 41       # what came later than event 41, and what comes")]
pub(crate) struct Args {
    /// Go on with what happens from now on.
    #[arg(short, long)]
    follow: bool,
    /// Begin behind the event of this number.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let path = format!("/events?after={}&follow={}", args.after, args.follow);
    let client = Client::open().await?;
    let mut events = client.stream(&path).await?;
    let mut names = Names { client, known: BTreeMap::new() };
    let mut pending = Vec::new();
    while let Some(bytes) = events.next().await? {
        pending.extend_from_slice(&bytes);
        // Everything up to the last line's end; what follows is half a line.
        let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else {
            continue;
        };
        let rest = pending.split_off(end + 1);
        show(&pending, &mut names, context).await?;
        pending = rest;
    }
    show(&pending, &mut names, context).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints whole lines.
async fn show(lines: &[u8], names: &mut Names, context: &Context) -> Result<(), Failure> {
    if context.json() {
        return out::bytes(lines);
    }
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let event: Event = serde_json::from_slice(line)
            .map_err(|error| Failure::from(error).under("cannot understand an event that the daemon sent"))?;
        let name = names.of(&event.vm).await?;
        out::print(&render(&event, &name))?;
    }
    Ok(())
}

/// Names of VMs, which events know by their ids.
struct Names {
    client: Client,
    known: BTreeMap<String, String>,
}

impl Names {
    /// The name of the VM with this id; the id itself when it was removed.
    async fn of(&mut self, id: &str) -> Result<String, Failure> {
        if !self.known.contains_key(id) {
            let vms: Vec<Vm> = self.client.get("/vms").await?.read()?;
            self.known.extend(vms.into_iter().map(|vm| (vm.id, vm.name)));
        }
        Ok(self.known.entry(id.to_owned()).or_insert_with(|| id.to_owned()).clone())
    }
}

fn render(event: &Event, vm: &str) -> String {
    let Event { seq, kind, detail, .. } = event;
    let line = format!("{seq:>6}  {}  {kind:8}  {vm}  {detail}", render::timestamp(event.at_ms));
    format!("{}\n", render::printable(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut event = Event { seq: 7, at_ms: 0, vm: "id".into(), kind: "forked".into(), detail: "3 children".into() };
        assert_eq!(render(&event, "web"), "     7  1970-01-01 00:00:00  forked    web  3 children\n");
        event.detail.clear();
        assert_eq!(render(&event, "web"), "     7  1970-01-01 00:00:00  forked    web\n");
    }
}
