//! `pando checkpoint create`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse};
use pando_wire::api::{Checkpoint, CheckpointRequest, CheckpointState};
use std::process::ExitCode;
use std::time::Duration;

/// How often it is asked whether a checkpoint is stored.
const PAUSE: Duration = Duration::from_millis(200);

/// Keep a running VM as it is now; it goes on.
///
/// Prints the checkpoint's name. It writes itself into the store meanwhile.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando checkpoint create web
  pando checkpoint create web before-upgrade --wait   # until it is stored")]
pub(super) struct Args {
    /// Name or id of the VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// The checkpoint's name; one is made from the VM's when absent.
    #[arg(value_parser = parse::name())]
    name: Option<String>,
    /// Wait until it is stored, and would survive a reboot.
    #[arg(short, long)]
    wait: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let client = Client::open().await?;
    let request = CheckpointRequest { name: args.name };
    let mut body = client.post_json(&format!("/vms/{}/checkpoint", segment(&args.vm)), &request).await?;
    let mut made: Checkpoint = body.read()?;
    while args.wait && made.state == CheckpointState::Saving {
        tokio::time::sleep(PAUSE).await;
        body = client.get(&format!("/checkpoints/{}", segment(&made.id))).await?;
        made = body.read()?;
    }
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&format!("{}\n", made.name))?;
    }
    match made.problem {
        Some(problem) if args.wait => {
            Err(Failure::new(format!("{} is in memory, and cannot be stored", made.name)).because(problem))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
