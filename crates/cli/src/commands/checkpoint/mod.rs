//! `pando checkpoint`.

pub(super) mod bucket; // where others find them
mod create; // keep a VM
mod export; // one leaves
mod gc; // take back room
mod import; // one arrives
mod inspect; // everything about one
mod pull; // one is fetched from a bucket
mod push; // one is sent to a bucket
mod ls; // which there are
mod rm; // remove some
mod verify; // read all, check all

use crate::context::Context;
use crate::failure::{Failure, USAGE};
use pando_wire::api::CheckpointState;
use std::process::ExitCode;

/// Keep VMs as they are, for others to begin from.
///
/// A checkpoint is first a frozen process that shares its memory with the VM, and writes itself into the store. As long as
/// it is there, VMs are run from it as fast as forks; afterwards they come from the store.
///
/// Without a command it is `create`, which is to be written out for a VM or a checkpoint that is called like a command.
#[derive(clap::Args)]
#[group(skip)] // Its name is that of the arguments below.
#[command(subcommand_negates_reqs = true)]
#[command(override_usage = "pando checkpoint [OPTIONS] <VM> [NAME]\n       pando checkpoint [OPTIONS] <COMMAND>")]
#[command(after_help = "\
Examples:
  pando checkpoint web warm             # web goes on
  pando run --from warm --count 20      # twenty of it
  pando checkpoint ls")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    create: Option<create::Args>,
}

#[derive(clap::Subcommand)]
enum Command {
    Create(create::Args),
    Ls(ls::Args),
    Inspect(inspect::Args),
    Rm(rm::Args),
    Export(export::Args),
    Import(import::Args),
    Push(push::Args),
    Pull(pull::Args),
    Verify(verify::Args),
    Gc(gc::Args),
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let command = match (args.command, args.create) {
        (Some(command), None) => command,
        (None, Some(args)) => Command::Create(args),
        _ => {
            let sentence = "a name stands before a command: write create for a checkpoint that is called like one";
            return Err(Failure::new(sentence).with_code(USAGE));
        }
    };
    match command {
        Command::Create(args) => create::run(args, context).await,
        Command::Ls(args) => ls::run(args, context).await,
        Command::Inspect(args) => inspect::run(args, context).await,
        Command::Rm(args) => rm::run(args, context).await,
        Command::Export(args) => export::run(args, context).await,
        Command::Import(args) => import::run(args, context).await,
        Command::Push(args) => push::run(args, context).await,
        Command::Pull(args) => pull::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Gc(args) => gc::run(args, context).await,
    }
}

/// A state as a person reads it.
fn state(state: CheckpointState) -> &'static str {
    match state {
        CheckpointState::Saving => "saving",
        CheckpointState::Stored => "stored",
        CheckpointState::Failed => "failed",
    }
}

#[cfg(test)]
pub(super) fn example(name: &str) -> pando_wire::api::Checkpoint {
    pando_wire::api::Checkpoint {
        id: format!("id-{name}"),
        name: name.to_owned(),
        vm: "web".into(),
        vm_id: "id-web".into(),
        state: CheckpointState::Stored,
        problem: None,
        image: "d1".into(),
        cpus: 2,
        memory_bytes: 512 << 20,
        seed: None,
        usage: None,
        logical_bytes: Some(3 << 30),
        stored_bytes: Some(40 << 20),
        hashed_bytes: Some(1 << 30),
        created_ms: 0,
    }
}
