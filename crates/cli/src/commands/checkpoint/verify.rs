//! `pando checkpoint verify`.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, progress, render};
use pando_wire::api::{Damage, Verified};
use std::process::ExitCode;

/// Read everything in the store, and check every byte.
///
/// Exit status: 0 when all is whole, 1 when something is damaged, which is named with the checkpoints that it affects.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pando checkpoint verify")]
pub(super) struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<ExitCode, Failure> {
    let client = Client::open().await?;
    let body = progress::watch(&client, "reading", async |query| client.post(&format!("/store/verify{query}")).await);
    let body = body.await?;
    let verified: Verified = body.read()?;
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&summary(&verified))?;
    }
    verified.damage.iter().for_each(|damage| {
        failure(damage).print();
    });
    Ok(if verified.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(verified: &Verified) -> String {
    let Verified { checkpoints, bytes, damage } = verified;
    let whole = if damage.is_empty() { "all whole" } else { "damaged" };
    format!("{checkpoints} checkpoints, {} read, {whole}\n", render::bytes(*bytes))
}

fn failure(damage: &Damage) -> Failure {
    let failure = Failure::new(format!("{} is damaged", damage.path)).because(damage.problem.clone());
    match &damage.affected[..] {
        [] => failure,
        names => failure.because(format!("it affects {}", names.join(", "))),
    }
}
