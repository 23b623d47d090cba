//! `pando checkpoint push`.

use super::bucket;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse, progress, render};
use pando_wire::api::{PushRequest, Pushed};
use std::process::ExitCode;

/// Send a stored checkpoint to a bucket, for other computers.
///
/// All that the checkpoint needs goes there but its image; what is there is not sent again. It is offered there when all
/// of it is there. Keys come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where they are temporary,
/// AWS_SESSION_TOKEN; the daemon forgets them afterwards.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando checkpoint push warm s3://team/pando
  pando checkpoint push warm s3://team --endpoint http://127.0.0.1:9000")]
pub(super) struct Args {
    /// Name or id of a checkpoint.
    #[arg(value_parser = parse::name(), add = complete::checkpoint())]
    checkpoint: String,
    /// The bucket, as s3://bucket/prefix.
    #[arg(value_name = "BUCKET")]
    url: String,
    #[command(flatten)]
    options: bucket::Options,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let request = PushRequest { bucket: args.options.bucket(args.url)? };
    let path = format!("/checkpoints/{}/push", segment(&args.checkpoint));
    let client = Client::open().await?;
    let body =
        progress::watch(&client, "pushing", async |query| client.post_json(&format!("{path}{query}"), &request).await);
    let body = body.await?;
    if context.json() {
        out::json(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Pushed { sent, sent_bytes, there } = body.read()?;
    out::print(&format!("{} sent in {sent} files, {there} were there\n", render::bytes(sent_bytes)))?;
    Ok(ExitCode::SUCCESS)
}
