//! `pando pages`: processes between monitors and the store. The daemon starts them by re-executing this program.

mod answer; // what a checkpoint answers
mod save; // a stream becomes a checkpoint
mod serve; // a checkpoint becomes pages

use crate::failure::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Be between a monitor and the store. The daemon starts it.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Store what a seed writes into standard input. Prints how large it is, as JSON.
    Save {
        #[command(flatten)]
        checkpoint: Checkpoint,
        /// A checkpoint in the store of the earlier seed that the stream may be the same as.
        #[arg(long)]
        since: Option<String>,
    },
    /// Serve pages of a checkpoint on the connections that come in a packet on standard input, until all are closed.
    Serve(Checkpoint),
}

#[derive(clap::Args)]
struct Checkpoint {
    /// The store's directory.
    #[arg(long)]
    store: PathBuf,
    /// What the checkpoint is called there.
    #[arg(long)]
    name: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Save { checkpoint, since } => save::run(&checkpoint.store, &checkpoint.name, since.as_deref()),
        Command::Serve(checkpoint) => serve::run(&checkpoint.store, &checkpoint.name),
    }
}
