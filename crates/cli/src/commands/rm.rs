//! `pando rm`.

use super::each::each;
use crate::client::{Client, segment};
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::parse;
use std::process::ExitCode;

/// Remove VMs and what only they need of their disks.
///
/// Their forks live on.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando rm web\n  pando rm -f review.1 review.2   # also when they run")]
pub(crate) struct Args {
    /// Names or ids of VMs.
    #[arg(required = true, value_name = "VM", value_parser = parse::name(), add = complete::vm())]
    vms: Vec<String>,
    /// Remove a VM also when it runs.
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let query = if args.force { "?force=true" } else { "" };
    let request =
        |client: Client, vm: String| async move { client.delete(&format!("/vms/{}{query}", segment(&vm))).await };
    each(args.vms, context, request).await
}
