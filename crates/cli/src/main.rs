//! `pando`: runs microVMs and forks them while they run. Start at `commands/mod.rs`.

mod agent; // a VM's agent, through the daemon
mod archive; // folders and files on their way in and out
mod client; // the daemon's API from the other side
mod commands; // one file per command
mod complete; // names of VMs and checkpoints for the shell
mod context; // what every command is told: the output format
mod failure; // the one place that prints errors
mod out; // results on standard output, all else on standard error
mod parse; // what is typed, as values
mod progress; // how far long work is
mod render; // values as text
mod terminal; // the terminal that exec lends
mod upload; // what run calls IMAGE

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use commands::{Command, Own};
use context::Context;
use std::process::ExitCode;

/// Run microVMs and fork them while they run.
#[derive(Parser)]
#[command(name = "pando", version, max_term_width = 100, arg_required_else_help = true, after_help = HELP)]
struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Environment:
  PANDO_HOST   the daemon to use: unix:///path or tcp://address:port
  PANDO_TOKEN  the token of a daemon on TCP
  PANDO_WAY    native or machine: run VMs so, whatever `pando doctor` finds

Exit status: 0 done, 1 not done, 2 wrong usage, 3 no such thing, 124 timed out;
exec exits with the status of its program, 128 + n when signal n ended it.

Examples:
  pando run --name web ./rootfs -- /srv/counter   # boot a VM from a folder
  pando fork web --count 3 --prefix review        # three copies of it, running
  pando exec -it review.1 sh                      # a shell in one of them";

fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).complete(); // Ends here when the shell asks for completions.
    let done = match Own::parse() {
        Some(own) => own.run(),
        None => {
            let cli = Cli::parse();
            cli.command.run(&cli.context)
        }
    };
    done.unwrap_or_else(|failure| failure.print())
}
