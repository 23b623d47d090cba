//! `pando config set`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse};
use pando_wire::api::SettingRequest;
use std::process::ExitCode;

/// Change a setting.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando config set idle-timeout 5m
  pando config set idle-timeout off")]
pub(super) struct Args {
    /// Name of a setting.
    #[arg(value_parser = parse::name(), add = complete::setting())]
    key: String,
    /// What it is to be.
    value: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = SettingRequest { value: args.value };
    let body = Client::open().await?.put_json(&format!("/settings/{}", segment(&args.key)), &request).await?;
    if context.json() {
        out::json(&body)?;
    }
    Ok(ExitCode::SUCCESS)
}
