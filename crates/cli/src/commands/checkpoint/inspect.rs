//! `pando checkpoint inspect`.

use super::state;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse, render};
use pando_wire::api::Checkpoint;
use std::process::ExitCode;

/// Show everything about a checkpoint.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando checkpoint inspect warm\n  pando checkpoint inspect -o json warm")]
pub(super) struct Args {
    /// Name or id of a checkpoint.
    #[arg(value_parser = parse::name(), add = complete::checkpoint())]
    checkpoint: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get(&format!("/checkpoints/{}", segment(&args.checkpoint))).await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&render(&body.read()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(checkpoint: &Checkpoint) -> String {
    let mut lines = vec![
        ("name", checkpoint.name.clone()),
        ("id", checkpoint.id.clone()),
        ("state", state(checkpoint.state).to_owned()),
        ("created", format!("{} UTC", render::timestamp(checkpoint.created_ms))),
        ("vm", format!("{} ({})", checkpoint.vm, checkpoint.vm_id)),
        ("image", checkpoint.image.clone()),
        ("cpus", checkpoint.cpus.to_string()),
        ("memory", render::bytes(checkpoint.memory_bytes)),
    ];
    let mut add = |label, value: Option<String>| lines.extend(value.map(|value| (label, value)));
    add("problem", checkpoint.problem.clone());
    add("guest's size", checkpoint.logical_bytes.map(render::bytes));
    add("stored", checkpoint.stored_bytes.map(render::bytes));
    add("hashed", checkpoint.hashed_bytes.map(render::bytes));
    add("seed", checkpoint.seed.map(|pid| format!("process {pid}")));
    add("resident", checkpoint.usage.map(|usage| render::bytes(usage.rss_bytes)));
    add("proportional", checkpoint.usage.map(|usage| render::bytes(usage.pss_bytes)));
    add("private", checkpoint.usage.map(|usage| render::bytes(usage.private_bytes)));
    lines.into_iter().map(|(label, value)| format!("{label:12}  {}\n", render::printable(&value))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn what_a_checkpoint_does_not_have_is_not_shown() {
        let expected = "\
name          warm
id            id-warm
state         stored
created       1970-01-01 00:00:00 UTC
vm            web (id-web)
image         d1
cpus          2
memory        512 MiB
guest's size  3 GiB
stored        40 MiB
hashed        1 GiB
";
        assert_eq!(render(&example("warm")), expected);
        let failed = Checkpoint { problem: Some("no room".into()), seed: Some(7), ..example("warm") };
        assert!(render(&failed).contains("problem       no room\n") && render(&failed).ends_with("process 7\n"));
    }
}
