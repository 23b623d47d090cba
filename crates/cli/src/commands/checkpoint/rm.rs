//! `pando checkpoint rm`.

use super::super::each::each;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, parse};
use std::process::ExitCode;

/// Remove checkpoints.
///
/// VMs that were run from them live on. What only they needed of the store is taken back by `pando checkpoint gc`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando checkpoint rm warm\n  pando checkpoint rm $(pando checkpoint ls -q)")]
pub(super) struct Args {
    /// Names or ids of checkpoints.
    #[arg(required = true, value_name = "CHECKPOINT", value_parser = parse::name(), add = complete::checkpoint())]
    checkpoints: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = |client: Client, checkpoint: String| async move {
        client.delete(&format!("/checkpoints/{}", segment(&checkpoint))).await
    };
    each(args.checkpoints, context, request).await
}
