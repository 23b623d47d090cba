//! `pando hibernate`.

use super::each::each;
use crate::client::segment;
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::parse;
use std::process::ExitCode;

/// Put VMs to sleep: memory into the store, so that they cost none.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando hibernate web")]
pub(crate) struct Args {
    /// Names or ids of VMs.
    #[arg(required = true, value_name = "VM", value_parser = parse::name(), add = complete::vm())]
    vms: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = |client: crate::client::Client, vm: String| async move {
        client.post(&format!("/vms/{}/hibernate", segment(&vm))).await
    };
    each(args.vms, context, request).await
}
