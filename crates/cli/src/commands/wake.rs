//! `pando wake`.

use super::each::each;
use crate::client::segment;
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::parse;
use std::process::ExitCode;

/// Bring back hibernated VMs, where they were; `exec` does, too.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando wake web")]
pub(crate) struct Args {
    /// Names or ids of VMs.
    #[arg(required = true, value_name = "VM", value_parser = parse::name(), add = complete::vm())]
    vms: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = |client: crate::client::Client, vm: String| async move {
        client.post(&format!("/vms/{}/wake", segment(&vm))).await
    };
    each(args.vms, context, request).await
}
