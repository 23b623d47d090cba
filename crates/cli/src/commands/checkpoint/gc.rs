//! `pando checkpoint gc`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, render};
use pando_wire::api::Collected;
use std::process::ExitCode;

/// Take back the room of what no checkpoint needs.
///
/// VMs run meanwhile, and checkpoints are written. Prints how much was freed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando checkpoint gc")]
pub(super) struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<ExitCode, Failure> {
    let body = Client::open().await?.post("/store/collect").await?;
    let collected: Collected = body.read()?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&format!("{}\n", render::bytes(collected.freed_bytes)))?;
    }
    for path in collected.damaged {
        out::note(&format!("warning: {path} is damaged, and kept\n"));
    }
    match collected.problem {
        Some(problem) => Err(Failure::new("not all that could be freed was").because(problem)),
        None => Ok(ExitCode::SUCCESS),
    }
}
