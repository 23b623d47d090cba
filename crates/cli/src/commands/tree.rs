//! `pando tree`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, render};
use pando_wire::api::Vm;
use std::process::ExitCode;

/// Show who was forked from whom.
#[derive(clap::Args)]
#[command(after_help = "\
A VM whose parent was removed stands at the top. Names are cut where a line would not fit the terminal.

Examples:
  pando tree")]
pub(crate) struct Args {}

pub(super) async fn run(_args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.get("/vms").await?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&render::tree(&body.read::<Vec<Vm>>()?, out::width()))?;
    }
    Ok(ExitCode::SUCCESS)
}
