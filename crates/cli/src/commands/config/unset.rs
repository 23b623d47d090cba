//! `pando config unset`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse};
use std::process::ExitCode;

/// Make a setting what it is when nobody sets it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando config unset idle-timeout")]
pub(super) struct Args {
    /// Name of a setting.
    #[arg(value_parser = parse::name(), add = complete::setting())]
    key: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.delete(&format!("/settings/{}", segment(&args.key))).await?;
    if context.json() {
        out::json(&body)?;
    }
    Ok(ExitCode::SUCCESS)
}
