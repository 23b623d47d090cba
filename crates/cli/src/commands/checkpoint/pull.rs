//! `pando checkpoint pull`.

use super::bucket;
use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, parse, progress, render};
use pando_wire::api::{PullRequest, Pulled};
use std::process::ExitCode;

/// Fetch a checkpoint from a bucket.
///
/// Prints its name. Every byte is checked: the checkpoint is there in full afterwards, or not at all; what is here is not
/// fetched again. The image that it needs must have been imported before, as by a run. Keys come from the environment, as
/// for push.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando checkpoint pull s3://team/pando warm
  pando checkpoint pull s3://team/pando warm --name theirs")]
pub(super) struct Args {
    /// The bucket, as s3://bucket/prefix.
    #[arg(value_name = "BUCKET")]
    url: String,
    /// Name where it was pushed, or id; of several, the one that was made last.
    #[arg(value_parser = parse::name())]
    checkpoint: String,
    /// Its name here; the one that it had when absent.
    #[arg(long, value_parser = parse::name())]
    name: Option<String>,
    #[command(flatten)]
    options: bucket::Options,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let bucket = args.options.bucket(args.url)?;
    let request = PullRequest { bucket, checkpoint: args.checkpoint, name: args.name };
    let client = Client::open().await?;
    let body = progress::watch(&client, "pulling", async |query| {
        client.post_json(&format!("/store/pull{query}"), &request).await
    });
    let body = body.await?;
    if context.json() {
        out::json(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Pulled { checkpoint, fetched, fetched_bytes, here } = body.read()?;
    out::print(&format!("{}\n", checkpoint.name))?;
    out::note(&format!("{} fetched in {fetched} files, {here} were here\n", render::bytes(fetched_bytes)));
    Ok(ExitCode::SUCCESS)
}
