//! `pando completions`.

use crate::failure::Failure;
use crate::out;
use clap::ValueEnum;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use std::process::ExitCode;

/// Print a shell's completion script.
///
/// With it the shell completes commands, options and names of VMs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  source <(pando completions bash)    # in ~/.bashrc
  source <(pando completions zsh)     # in ~/.zshrc
  pando completions fish | source       # in ~/.config/fish/config.fish")]
pub(crate) struct Args {
    /// Which shell.
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration("COMPLETE", "pando", "pando", "pando", &mut script)?;
    out::bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
