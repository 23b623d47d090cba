//! `pando daemon`.

use crate::failure::Failure;
use crate::parse;
use pando_daemon::Config;
use pando_daemon::network::{Cidr, DEFAULT_RANGE};
use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Serve the API in the foreground.
///
/// Other commands start it in the background when they need it.
#[derive(clap::Args)]
#[command(after_help = "\
VMs outlive the daemon: end it with SIGTERM, and the next one takes them over. PANDO_STATE_DIR, \
PANDO_RUNTIME_DIR and PANDO_CACHE_DIR say where its files lie; PANDO_LOG says how much it \
tells on standard error: error, warn, info, debug.

Examples:
  pando daemon
  pando daemon --tcp 127.0.0.1:7070 --token-file token")]
pub(crate) struct Args {
    /// Listen on this address too, for whoever knows the token.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token_file")]
    tcp: Option<SocketAddr>,
    /// A file that holds the token, which only its owner should be able to read.
    #[arg(long, value_name = "FILE", requires = "tcp")]
    token_file: Option<PathBuf>,
    /// Serve what listens in VMs to browsers here, or nowhere: none. Whoever reaches it sees public ports.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7080", value_parser = previews)]
    previews: Previews,
    /// The domain of those: a VM's port is seen at PORT-VM.DOMAIN.
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    preview_domain: String,
    /// Listen on this Unix socket instead of the usual one.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How long the process of a checkpoint stays in memory once it is stored and nobody uses it.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse::duration)]
    keep_seeds: Duration,
    /// Where VMs with a network have their addresses on this computer, two for each.
    #[arg(long, value_name = "CIDR", default_value_t = DEFAULT_RANGE)]
    network_range: Cidr,
    /// Begin a session of its own, so that no terminal takes it along. For the command that starts it.
    #[arg(long, hide = true)]
    detached: bool,
}

/// Where previews are served, if they are.
#[derive(Debug, Clone, Copy)]
struct Previews(Option<SocketAddr>);

fn previews(value: &str) -> Result<Previews, String> {
    if value == "none" {
        return Ok(Previews(None));
    }
    let address =
        value.parse().map_err(|_| "it is none, or an address and a port such as 127.0.0.1:7080".to_owned())?;
    Ok(Previews(Some(address)))
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    if args.detached {
        rustix::process::setsid().map_err(|error| Failure::from(error).under("cannot begin a session"))?;
    }
    let mut config = Config::default_paths();
    config.keep_seeds = args.keep_seeds;
    config.previews = args.previews.0;
    config.preview_domain = args.preview_domain;
    config.network_range = args.network_range;
    if let Some(socket) = args.socket {
        config.socket = socket;
    }
    if let (Some(address), Some(file)) = (args.tcp, args.token_file) {
        config.tcp = Some((address, token(&file)?));
    }
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).with_env_var("PANDO_LOG");
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(pando_daemon::serve(config))?;
    Ok(ExitCode::SUCCESS)
}

/// The token in `file`, without the line's end.
fn token(file: &Path) -> Result<String, Failure> {
    let sentence = || format!("cannot use the token in {}", file.display());
    let text = fs::read_to_string(file).map_err(|error| Failure::from(error).under(sentence()))?;
    let token = text.trim();
    let fits_a_header = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits_a_header {
        return Err(Failure::new(sentence()).because("it is empty or has other than printable ASCII characters"));
    }
    Ok(token.to_owned())
}
