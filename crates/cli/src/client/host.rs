//! Which daemon to talk to: `PANDO_HOST`, else a running `pando machine` where hardware KVM is missing, else this
//! computer's own. `PANDO_WAY` decides between the last two.

use super::local;
use pando_machine::doctor::Kvm;
use std::env;
use std::fmt;
use std::path::PathBuf;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a TCP port, with a bearer token.
    Tcp {
        /// `host:port`.
        address: String,
        /// What `Authorization` carries.
        token: String,
    },
}

/// Why [`Host::parse`] refuses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HostError {
    /// Neither of the two forms.
    #[error("PANDO_HOST is {0:?}, which is neither unix:///path nor tcp://address:port")]
    Form(String),
    /// A TCP daemon lets nobody in without a token.
    #[error("PANDO_HOST is {0:?}, and PANDO_TOKEN is not set")]
    Token(String),
    /// No way of running VMs.
    #[error("PANDO_WAY is {0:?}, which is neither native nor machine")]
    Way(String),
    /// The emulated host is wanted and is not there.
    #[error("PANDO_WAY is machine, and no emulated host runs: `pando machine start` starts one")]
    NoMachine,
}

/// What `PANDO_WAY` says, whatever the doctor finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// On this computer's KVM, even if nobody knows how.
    Native,
    /// In the emulated host, even if there is hardware KVM.
    Machine,
}

/// What `PANDO_WAY` says, if anything.
pub(super) fn way() -> Result<Option<Way>, HostError> {
    match env::var("PANDO_WAY").as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("native") => Ok(Some(Way::Native)),
        Ok("machine") => Ok(Some(Way::Machine)),
        Ok(other) => Err(HostError::Way(other.to_owned())),
    }
}

/// A host, and whether a daemon may be started when none answers there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) host: Host,
    pub(crate) may_start: bool,
}

/// Decides which daemon to talk to.
pub(crate) fn find() -> Result<Found, HostError> {
    if let Ok(host) = env::var("PANDO_HOST")
        && !host.is_empty()
    {
        let host = Host::parse(&host, env::var("PANDO_TOKEN").ok())?;
        return Ok(Found { host, may_start: false });
    }
    let machine = match way()? {
        Some(Way::Native) => None,
        Some(Way::Machine) => Some(local::machine().ok_or(HostError::NoMachine)?),
        None => local::machine().filter(|_| !Kvm::find().is_hardware()),
    };
    Ok(match machine {
        Some(host) => Found { host, may_start: false },
        None => Found { host: Host::Unix(local::socket()), may_start: true },
    })
}

impl Host {
    /// Reads `PANDO_HOST` and `PANDO_TOKEN`.
    fn parse(host: &str, token: Option<String>) -> Result<Self, HostError> {
        if let Some(path) = host.strip_prefix("unix://")
            && path.starts_with('/')
        {
            return Ok(Self::Unix(path.into()));
        }
        if let Some(address) = host.strip_prefix("tcp://")
            && address.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
        {
            let token = token.filter(|token| !token.is_empty()).ok_or_else(|| HostError::Token(host.to_owned()))?;
            return Ok(Self::Tcp { address: address.to_owned(), token });
        }
        Err(HostError::Form(host.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_socket_or_an_address_with_a_token() {
        let token = || Some("secret".to_owned());
        assert_eq!(Host::parse("unix:///run/p.sock", None), Ok(Host::Unix("/run/p.sock".into())));
        assert_eq!(
            Host::parse("tcp://127.0.0.1:7070", token()),
            Ok(Host::Tcp { address: "127.0.0.1:7070".into(), token: "secret".into() })
        );
        assert!(matches!(Host::parse("tcp://127.0.0.1:7070", None), Err(HostError::Token(_))));
        for wrong in ["", "unix://relative", "tcp://127.0.0.1", "tcp://:80", "tcp://a:70707", "http://a:1"] {
            assert!(matches!(Host::parse(wrong, token()), Err(HostError::Form(_))), "{wrong}");
        }
    }
}
