//! One file per command. Each has its `Args`, whose doc comments are the help, and a `run(args, context)`.

// The life of a VM.
mod checkpoint;
mod cp;
mod exec;
mod fork;
mod hibernate;
mod inspect;
mod logs;
mod ls;
mod net;
mod pause;
mod port;
mod resume;
mod rm;
mod run;
mod ssh;
mod start;
mod stop;
mod tree;
mod wake;

// What lies around VMs.
mod config;
mod events;
mod images;

// This computer.
mod completions;
mod daemon;
mod doctor;
mod machine;

// What the daemon starts.
mod pages;
mod vmm;

// Shared: several VMs that begin together; one request for each of several VMs.
mod children;
mod each;

use crate::context::Context;
use crate::failure::{Failure, USAGE};
use clap::CommandFactory;
use std::ffi::OsString;
use std::process::ExitCode;

/// What `pando` can do.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Run(Box<run::Args>),
    Fork(fork::Args),
    Checkpoint(checkpoint::Args),
    Ls(ls::Args),
    Tree(tree::Args),
    Inspect(inspect::Args),
    Exec(exec::Args),
    Ssh(ssh::Args),
    Logs(logs::Args),
    Cp(cp::Args),
    Port(port::Args),
    Net(net::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Hibernate(hibernate::Args),
    Wake(wake::Args),
    Stop(stop::Args),
    Start(start::Args),
    Rm(rm::Args),
    Images(images::Args),
    Events(events::Args),
    Config(config::Args),
    Doctor(doctor::Args),
    Machine(machine::Args),
    Daemon(daemon::Args),
    Completions(completions::Args),
}

impl Command {
    /// Runs it. `Ok` is the status to exit with, which need not be success.
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        if context.json()
            && let Some(printed) = self.prints_something_else()
        {
            return Err(Failure::new(format!("JSON was asked for, and this command prints {printed}")).with_code(USAGE));
        }
        match self {
            Self::Run(args) => wait_for(run::run(*args, context)),
            Self::Fork(args) => wait_for(fork::run(args, context)),
            Self::Checkpoint(args) => wait_for(checkpoint::run(args, context)),
            Self::Ls(args) => wait_for(ls::run(args, context)),
            Self::Tree(args) => wait_for(tree::run(args, context)),
            Self::Inspect(args) => wait_for(inspect::run(args, context)),
            Self::Exec(args) => wait_for(exec::run(args)),
            Self::Ssh(args) => wait_for(ssh::run(args)),
            Self::Logs(args) => wait_for(logs::run(args)),
            Self::Cp(args) => wait_for(cp::run(args)),
            Self::Port(args) => wait_for(port::run(args, context)),
            Self::Net(args) => wait_for(net::run(args, context)),
            Self::Pause(args) => wait_for(pause::run(args, context)),
            Self::Resume(args) => wait_for(resume::run(args, context)),
            Self::Hibernate(args) => wait_for(hibernate::run(args, context)),
            Self::Wake(args) => wait_for(wake::run(args, context)),
            Self::Stop(args) => wait_for(stop::run(args, context)),
            Self::Start(args) => wait_for(start::run(args, context)),
            Self::Rm(args) => wait_for(rm::run(args, context)),
            Self::Images(args) => wait_for(images::run(args, context)),
            Self::Events(args) => wait_for(events::run(args, context)),
            Self::Config(args) => wait_for(config::run(args, context)),
            Self::Doctor(args) => doctor::run(args, context),
            Self::Machine(args) => machine::run(args, context),
            Self::Daemon(args) => daemon::run(args),
            Self::Completions(args) => completions::run(args),
        }
    }

    /// What its output is, where that can be no JSON of ours.
    fn prints_something_else(&self) -> Option<&'static str> {
        match self {
            Self::Exec(_) => Some("what its program prints"),
            Self::Ssh(_) => Some("what its program prints"),
            Self::Logs(_) => Some("what its VM wrote"),
            Self::Cp(_) => Some("nothing, or an archive"),
            Self::Completions(_) => Some("a script"),
            Self::Machine(args) => args.prints_something_else(),
            _ => None,
        }
    }
}

/// What the daemon starts by re-executing this program. A parser of its own, as every VM waits for one of them: to build
/// those of all the commands takes several times as long as what else happens before they begin.
#[derive(clap::Parser)]
#[command(name = "pando", version)]
pub(crate) enum Own {
    Vmm(vmm::Args),
    Pages(pages::Args),
}

impl Own {
    /// What this process is to be, if the daemon started it.
    pub(crate) fn parse() -> Option<Self> {
        let is_own = |name: OsString| Self::command().find_subcommand(name).is_some();
        std::env::args_os().nth(1).filter(|name| is_own(name.clone())).map(|_| <Self as clap::Parser>::parse())
    }

    /// Is it.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Vmm(args) => Ok(vmm::run(args)),
            Self::Pages(args) => pages::run(&args),
        }
    }
}

/// Runs a command that talks to the daemon. The others get no runtime: a monitor must have no thread but its own.
fn wait_for(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread may still wait for a key that nobody presses.
    runtime.shutdown_background();
    result
}
