//! `pando net`.

use super::inspect;
use super::run::net::Options;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse};
use clap::ArgGroup;
use pando_wire::api::{NetworkRequest, Vm};
use std::process::ExitCode;

/// Change what a VM's network reaches, also while it runs.
///
/// All of it is said anew: what is not repeated no longer holds. Prints what it is from now on.
#[derive(clap::Args)]
#[command(
    override_usage = "pando net [OPTIONS] <VM>",
    group(ArgGroup::new("change").args(["net", "allow", "deny", "rate"]).required(true).multiple(true)),
    mut_arg("net", |arg| arg.help("What its network reaches; as before when absent")),
    after_help = "\
Connections go on, but for those to what is no longer reached. A VM that was booted without a network gets none, and one \
that has a network keeps it: isolated cuts it off. Its forks are as it is then.

Examples:
  pando net web --deny 10.0.0.0/8 --rate 10M
  pando net web --allow example.org --allow host
  pando net web --net isolated
  pando net web --net nat            # without any limit again"
)]
pub(crate) struct Args {
    /// Name or id of a VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    #[command(flatten)]
    network: Options,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = NetworkRequest::from(args.network);
    let path = format!("/vms/{}/network", segment(&args.vm));
    let body = Client::open().await?.patch_json(&path, &request).await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&format!("{}\n", inspect::network(&body.read::<Vm>()?.network)))?;
    }
    Ok(ExitCode::SUCCESS)
}
