//! `pando config get`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse};
use pando_wire::api::Setting;
use std::process::ExitCode;

/// Print what a setting is.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando config get idle-timeout")]
pub(super) struct Args {
    /// Name of a setting.
    #[arg(value_parser = parse::name(), add = complete::setting())]
    key: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get(&format!("/settings/{}", segment(&args.key))).await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&format!("{}\n", body.read::<Setting>()?.value))?;
    }
    Ok(ExitCode::SUCCESS)
}
