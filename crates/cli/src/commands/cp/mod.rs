//! `pando cp`.

mod endpoint; // VM:PATH or a path here
mod get; // out of a VM
mod put; // into a VM

use crate::client::Client;
use crate::complete;
use crate::failure::Failure;
use endpoint::Endpoint;
use std::process::ExitCode;

/// Copy files and folders between a VM and this computer.
#[derive(clap::Args)]
#[command(after_help = "\
As cp -r does it: into TO when that is a folder, else as TO. Files belong to root in the VM and to you here. A \
path with a colon that is no VM's starts with ./ or /. With - in place of a path here, a tar archive is read or \
written.

Examples:
  pando cp ./site web:/srv              # becomes /srv/site
  pando cp web:/var/log/app.log .
  pando cp web:/etc - | tar t")]
pub(crate) struct Args {
    /// VM:PATH, a path, or -.
    #[arg(add = complete::vm_or_path())]
    from: Endpoint,
    /// VM:PATH, a path, or -.
    #[arg(add = complete::vm_or_path())]
    to: Endpoint,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    match (args.from, args.to) {
        (Endpoint::Local(from), Endpoint::Vm { vm, path }) => {
            put::put(&Client::open().await?, from, &vm, &path).await?
        }
        (Endpoint::Vm { vm, path }, Endpoint::Local(to)) => get::get(&Client::open().await?, &vm, &path, to).await?,
        (Endpoint::Vm { .. }, Endpoint::Vm { .. }) => {
            return Err(Failure::new("cannot copy from VM to VM in one go; copy to this computer first"));
        }
        (Endpoint::Local(_), Endpoint::Local(_)) => {
            return Err(Failure::new("neither side is in a VM; one of them must be VM:PATH"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
