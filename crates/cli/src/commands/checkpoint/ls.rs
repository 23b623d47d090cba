//! `pando checkpoint ls`.

use super::state;
use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::out;
use crate::render::{self, Table};
use pando_wire::api::Checkpoint;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// List checkpoints, oldest first.
///
/// SEED is what its process in memory costs, shared pages divided by their sharers; without one, VMs come from the store.
/// STORED is what it added to the store.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando checkpoint ls\n  pando checkpoint ls -q            # names only")]
pub(super) struct Args {
    /// Only names.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get("/checkpoints").await?;
    if context.json() {
        out::json(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    out::print(&render(&body.read::<Vec<Checkpoint>>()?, args.quiet, now_ms, out::width()))?;
    Ok(ExitCode::SUCCESS)
}

fn render(checkpoints: &[Checkpoint], quiet: bool, now_ms: i64, width: Option<usize>) -> String {
    if quiet {
        return checkpoints.iter().map(|checkpoint| format!("{}\n", checkpoint.name)).collect();
    }
    let or_dash = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), render::bytes);
    let mut table = Table::new(["NAME…", "VM…", "STATE", "MEMORY", "SEED", "STORED", "AGE"]);
    for checkpoint in checkpoints {
        table.row(vec![
            checkpoint.name.clone(),
            checkpoint.vm.clone(),
            state(checkpoint.state).to_owned(),
            render::bytes(checkpoint.memory_bytes),
            or_dash(checkpoint.usage.map(|usage| usage.pss_bytes)),
            or_dash(checkpoint.stored_bytes),
            render::age(checkpoint.created_ms, now_ms),
        ]);
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;
    use pando_wire::api::{CheckpointState, Usage};

    #[test]
    fn a_seed_is_listed_with_its_memory_and_what_is_not_known_is_a_dash() {
        let mut warm = example("warm");
        warm.usage = Some(Usage { rss_bytes: 3 << 20, pss_bytes: 2 << 20, private_bytes: 0 });
        warm.state = CheckpointState::Saving;
        warm.stored_bytes = None;
        let expected = "\
NAME  VM   STATE   MEMORY   SEED   STORED  AGE
warm  web  saving  512 MiB  2 MiB  -       60s
cold  web  stored  512 MiB  -      40 MiB  60s
";
        let all = [warm, example("cold")];
        assert_eq!(render(&all, false, 60_000, Some(80)), expected);
        assert_eq!(render(&all, true, 0, None), "warm\ncold\n");
    }

    #[test]
    fn the_longest_names_fit_80_columns() {
        let mut long = example(&"n".repeat(63));
        long.vm = "v".repeat(63);
        assert!(render(&[long], false, 0, Some(80)).lines().all(|line| line.chars().count() <= 80));
    }
}
