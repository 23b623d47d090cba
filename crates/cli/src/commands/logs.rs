//! `pando logs`.

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::{complete, out, parse};
use std::process::ExitCode;

/// Print a VM's console: its kernel, and what its command writes.
#[derive(clap::Args)]
#[command(after_help = "\
The bytes are printed as the VM wrote them, escape sequences included.

Examples:
  pando logs web
  pando logs -f web | grep ready")]
pub(crate) struct Args {
    /// Name or id of a VM.
    #[arg(value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// Go on until the VM ends.
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let query = if args.follow { "?follow=true" } else { "" };
    let client = Client::open().await?;
    let mut log = client.stream(&format!("/vms/{}/logs{query}", segment(&args.vm))).await?;
    while let Some(bytes) = log.next().await? {
        out::bytes(&bytes)?;
    }
    Ok(ExitCode::SUCCESS)
}
