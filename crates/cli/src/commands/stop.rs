//! `pando stop`.

use super::each::each;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, parse};
use std::process::ExitCode;
use std::time::Duration;

/// Power VMs off and keep their disks.
///
/// Each is asked to power off, and ended when it has not done so in time.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando stop web\n  pando stop --timeout 30s web db")]
pub(crate) struct Args {
    /// Names or ids of VMs.
    #[arg(required = true, value_name = "VM", value_parser = parse::name(), add = complete::vm())]
    vms: Vec<String>,
    /// How long a VM may take to power off.
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    timeout: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let timeout_ms = args.timeout.as_millis();
    let request = |client: Client, vm: String| async move {
        client.post(&format!("/vms/{}/stop?timeout_ms={timeout_ms}", segment(&vm))).await
    };
    each(args.vms, context, request).await
}
