//! What a VM's network reaches, as it is typed.

use crate::parse;
use clap::ValueEnum;
use pando_wire::api::{NetworkMode, NetworkRequest};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Options {
    /// What its network reaches; as pando config says when absent, or nat with the options below.
    #[arg(long, value_enum, help_heading = "Network")]
    net: Option<Mode>,
    /// A network, address or name that it reaches, and then nothing but these; host and metadata open what is else closed.
    #[arg(long, value_name = "CIDR|NAME", help_heading = "Network")]
    allow: Vec<String>,
    /// A network, address or name that it does not reach, also where --allow has it.
    #[arg(long, value_name = "CIDR|NAME", help_heading = "Network")]
    deny: Vec<String>,
    /// The most bytes a second in each direction, such as 10M.
    #[arg(long, value_name = "SIZE", value_parser = parse::size, help_heading = "Network")]
    rate: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// No network device
    None,
    /// What the host reaches, but not other VMs, nor the host and cloud metadata unless they are allowed
    Nat,
    /// A network device, and nothing behind it
    Isolated,
}

impl From<Options> for NetworkRequest {
    fn from(Options { net, allow, deny, rate }: Options) -> Self {
        let mode = net.map(|mode| match mode {
            Mode::None => NetworkMode::None,
            Mode::Nat => NetworkMode::Nat,
            Mode::Isolated => NetworkMode::Isolated,
        });
        Self { mode, allow, deny, rate_bytes: rate }
    }
}

/// What is said of a VM that has no network though nobody declined one.
pub(super) fn without(lack: &str) -> String {
    format!("no network: {lack} (pando doctor says more; --net none to not be told)\n")
}
