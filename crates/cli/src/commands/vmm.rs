//! `pando vmm`: one VM. The daemon starts it by re-executing this program.

use std::process::ExitCode;

/// Be the monitor of one VM, whose control socket listens on standard input. The daemon starts it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The VM's name, for `ps`.
    #[arg(long)]
    name: String,
}

pub(super) fn run(args: Args) -> ExitCode {
    pando_vmm::main(&args.name)
}
