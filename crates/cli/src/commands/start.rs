//! `pando start`.

use super::each::each;
use crate::client::{Client, segment};
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::parse;
use std::process::ExitCode;

/// Boot stopped VMs again from their disks.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando start web\n  pando start web db")]
pub(crate) struct Args {
    /// Names or ids of VMs.
    #[arg(required = true, value_name = "VM", value_parser = parse::name(), add = complete::vm())]
    vms: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    Client::open_without_starting()?.look_at_kvm()?;
    let request =
        |client: Client, vm: String| async move { client.post(&format!("/vms/{}/start", segment(&vm))).await };
    each(args.vms, context, request).await
}
