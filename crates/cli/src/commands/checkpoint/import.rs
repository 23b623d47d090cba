//! `pando checkpoint import`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::Failure;
use crate::{out, parse, upload};
use pando_wire::api::Checkpoint;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Read a checkpoint that was exported.
///
/// Prints its name. Every byte is checked: the checkpoint is there in full afterwards, or not at all. The image that it
/// needs must have been imported before, as by a run.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando checkpoint import warm.pando
  pando checkpoint import --name theirs - < warm.pando")]
pub(super) struct Args {
    /// The file; - is standard input.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Its name here; the one that it had when absent.
    #[arg(long, value_parser = parse::name())]
    name: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let client = Client::open().await?;
    let query = args.name.map(|name| format!("?name={}", segment(&name))).unwrap_or_default();
    let path = format!("/checkpoints{query}");
    let failed = |error: io::Error| Failure::from(error).under(format!("cannot read {}", args.file.display()));
    let body = if args.file == Path::new("-") {
        upload::send(&client, &path, io::stdin(), None, failed).await?
    } else {
        let file = File::open(&args.file).map_err(failed)?;
        let total_bytes = file.metadata().map_err(failed)?.len();
        upload::send(&client, &path, file, Some(total_bytes), failed).await?
    };
    if context.json() {
        out::json(&body)?
    } else {
        out::print(&format!("{}\n", body.read::<Checkpoint>()?.name))?
    }
    Ok(ExitCode::SUCCESS)
}
