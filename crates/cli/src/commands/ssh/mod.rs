//! `pando ssh`: OpenSSH's client, and for its other end an SSH server in this program, one for each connection.
//!
//! ```text
//! ssh ──pipe── pando ssh --stdio web ──daemon── agent in the guest ── shell, sftp-server, 127.0.0.1:PORT
//! ```
//!
//! So the guest needs no network, no sshd, no keys and no user of its own for it. Who may reach the VM, the daemon has
//! decided by then: there is nothing left to be proved, and nothing on the way to be feared, as the two ends are joined by a
//! pipe.

mod forward; // ports of the guest
mod program; // what runs at the end of a session
mod server; // the other end of OpenSSH's client
mod session; // one channel with a program

use crate::failure::Failure;
use crate::{complete, parse};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Connect to a VM with OpenSSH's client.
#[derive(clap::Args)]
#[command(after_help = "\
The VM needs neither a network nor an SSH server; of its image, /bin/sh, and for scp and sftp an sftp-server. A VM that \
sleeps is woken. -L, -D and ProxyJump reach what listens in the VM itself, on localhost. What comes behind the VM \
goes to ssh as it is.

For programs that call ssh themselves, such as editors, in ~/.ssh/config:
  Host *.pando
    ProxyCommand pando ssh --stdio %n
    User root
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null

Examples:
  pando ssh web
  pando ssh web -L 8080:localhost:80
  pando ssh dev@web -- make check
  scp -o ProxyCommand='pando ssh --stdio %n' -o StrictHostKeyChecking=no file root@web:/srv/")]
pub(crate) struct Args {
    /// Serve one connection on standard input and output, for ssh's ProxyCommand.
    #[arg(long, conflicts_with = "arguments")]
    stdio: bool,
    /// Name or id of the VM, which may end with .pando; the user before it is root when absent.
    #[arg(value_name = "[USER@]VM", value_parser = parse::name(), add = complete::vm())]
    vm: String,
    /// What else ssh is told.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let (user, vm) = match args.vm.rsplit_once('@') {
        Some((user, vm)) => (user, vm),
        None => ("root", args.vm.as_str()),
    };
    let vm = vm.strip_suffix(".pando").unwrap_or(vm);
    if args.stdio {
        return server::serve(vm).await;
    }
    Err(call(user, vm, &args.arguments)?)
}

/// Becomes ssh. What comes back is why not.
fn call(user: &str, vm: &str, arguments: &[String]) -> Result<Failure, Failure> {
    let program = std::env::current_exe()?;
    let program = program.to_str().filter(|path| !path.contains(['\'', '%']));
    let program = program.ok_or_else(|| Failure::new("ssh cannot call a program with such a path as this one's"))?;
    let error = Command::new("ssh")
        .arg(format!("-oProxyCommand='{program}' ssh --stdio %n"))
        // The key is another one each time, and a pipe is who it says.
        .args(["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"])
        .arg(format!("-l{user}"))
        .arg(vm)
        .args(arguments)
        .exec();
    Ok(Failure::new(format!("cannot run ssh, which comes with OpenSSH's client: {error}")))
}
