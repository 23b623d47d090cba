//! `pando config`.

mod get; // what one is
mod ls; // which there are
mod set; // change one
mod unset; // as if it had never been set

use crate::context::Context;
use crate::failure::Failure;
use std::process::ExitCode;

/// Show and change how the daemon is set.
///
/// A setting holds at once, and for the daemons after this one.
#[derive(clap::Args)]
#[command(after_help = "\
A VM is idle while no program runs in it by pando exec, nothing is copied to or from it, nobody asks the daemon for \
anything that needs it, and its process takes less than 5 % of a CPU. A shell that is left open is a use. It wakes by \
itself when it is needed.

A VM that is run without --net has the network that net says: nat, none, isolated, or auto, which is nat where that can \
be.

Examples:
  pando config set idle-timeout 5m     # VMs that nobody uses for so long hibernate
  pando config set net none            # VMs have no network unless they are told to have one
  pando config ls")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Ls(ls::Args),
    Get(get::Args),
    Set(set::Args),
    Unset(unset::Args),
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Ls(args) => ls::run(&args, context).await,
        Command::Get(args) => get::run(&args, context).await,
        Command::Set(args) => set::run(args, context).await,
        Command::Unset(args) => unset::run(&args, context).await,
    }
}
