//! What can be wrong with a request to the fleet.

use crate::agent::AgentError;
use crate::db::{DbError, state_name};
use crate::monitor::MonitorError;
use crate::network::NetworkError;
use crate::settings::SettingError;
use pando_guest::import::ImportError;
use pando_store::BucketError;
use pando_wire::api::State;
use pando_wire::control::VERSION;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Why the fleet did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FleetError {
    /// Nothing has this name or id.
    #[error("no VM is called {0}")]
    NoSuchVm(String),
    /// No checkpoint has this name or id.
    #[error("no checkpoint is called {0}")]
    NoSuchCheckpoint(String),
    /// No image has this digest.
    #[error("there is no image {0}")]
    NoSuchImage(String),
    /// The daemon sees no kernel there.
    #[error("there is no kernel {}", .0.display())]
    NoSuchKernel(PathBuf),
    /// Names are unique.
    #[error("there is a VM called {0} already")]
    NameTaken(String),
    /// Names of checkpoints are unique, too.
    #[error("there is a checkpoint called {0} already")]
    CheckpointTaken(String),
    /// The checkpoint is neither in memory nor in the store.
    #[error("nothing can be run from {0}: it could not be stored, and its seed is gone")]
    NotStored(String),
    /// The store does not have the checkpoint, so there is nothing to be sent.
    #[error("cannot {wanted} {name}: it is not stored")]
    Unstored {
        /// Which checkpoint.
        name: String,
        /// What was asked, as an infinitive.
        wanted: &'static str,
    },
    /// A bucket does not take or give a checkpoint.
    #[error("cannot {wanted} {name}")]
    Bucket {
        /// Which checkpoint.
        name: String,
        /// What was asked, as an infinitive.
        wanted: &'static str,
        /// The cause.
        source: Box<BucketError>,
    },
    /// Whoever asked for it went away meanwhile.
    #[error("nobody waits for it any more")]
    Abandoned,
    /// What was sent cannot become a checkpoint.
    #[error("cannot import the checkpoint")]
    NoExport(#[source] Box<dyn Error + Send + Sync>),
    /// The image that a checkpoint needs is not here.
    #[error("cannot {wanted} {checkpoint}: it needs image {image}, which is to be imported first")]
    NeedsImage {
        /// Which checkpoint.
        checkpoint: String,
        /// The image's digest.
        image: String,
        /// What is to be done with it.
        wanted: &'static str,
    },
    /// The VM is in the wrong state for that.
    #[error("cannot {wanted} {name}: it is {}", state_name(*is))]
    State {
        /// Which VM.
        name: String,
        /// Its state.
        is: State,
        /// What was asked, as an infinitive.
        wanted: &'static str,
    },
    /// The VM's monitor is of another build.
    #[error(
        "{name} belongs to another build of pando: its monitor speaks version {version} of the control protocol, and \
         this daemon version {VERSION}"
    )]
    Foreign {
        /// Which VM.
        name: String,
        /// What its monitor speaks.
        version: u32,
    },
    /// A VM or a checkpoint needs the image.
    #[error("image {digest} is in use by {vm}")]
    ImageInUse {
        /// Which image.
        digest: String,
        /// One of those that need it.
        vm: String,
    },
    /// What was sent cannot become an image.
    #[error("cannot import the image")]
    NoImage(#[source] ImportError),
    /// The request says what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no KVM to be had.
    #[error("cannot open {device}")]
    NoKvm {
        /// The device.
        device: String,
        /// The cause.
        source: io::Error,
    },
    /// The host has too little memory.
    #[error("no room for {what}: {needed_mib} MiB may be needed, and {available_mib} MiB are available")]
    NoRoom {
        /// For what.
        what: String,
        /// What it may need, and what the host keeps.
        needed_mib: u64,
        /// What there is.
        available_mib: u64,
    },
    /// The tree of forks is too deep.
    #[error("cannot {wanted} {name}: its disk has {layers} layers, and {most} are possible")]
    TooDeep {
        /// Which VM.
        name: String,
        /// What was asked, as an infinitive.
        wanted: &'static str,
        /// How many layers.
        layers: usize,
        /// How many are possible.
        most: usize,
    },
    /// The VM did not get to the point where its agent answers.
    #[error("cannot boot {name}: {reason}")]
    Boot {
        /// Which VM.
        name: String,
        /// What happened.
        reason: String,
        /// The last lines of its console.
        console: Vec<String>,
    },
    /// The guest does not answer.
    #[error("{name} does not answer")]
    Agent {
        /// Which VM.
        name: String,
        /// The cause.
        source: AgentError,
    },
    /// The guest answered that it cannot.
    #[error("{name} cannot do that")]
    Guest {
        /// Which VM.
        name: String,
        /// The cause.
        source: AgentError,
    },
    /// No program in the VM listens on the port.
    #[error("nobody listens on port {port} of {name}")]
    NobodyListens {
        /// Which VM.
        name: String,
        /// Which port.
        port: u16,
    },
    /// The VM's agent is older than connections to ports.
    #[error("the agent in {name} is of an older build, which connects to no ports: stop the VM and start it again")]
    OldAgent {
        /// Which VM.
        name: String,
    },
    /// Nobody can see the port.
    #[error("port {port} of {name} is not open")]
    NoSuchPort {
        /// Which VM.
        name: String,
        /// Which port.
        port: u16,
    },
    /// A port of the host that a VM was to have is not to be had.
    #[error("cannot publish a port at {at}")]
    NotPublished {
        /// The host's address and port.
        at: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A program in a VM took too long and was killed.
    #[error("{program} in {name} did not end within {} ms", limit.as_millis())]
    ExecLate {
        /// Which VM.
        name: String,
        /// Which program.
        program: String,
        /// How long it had.
        limit: Duration,
    },
    /// A monitor did not do what it was asked.
    #[error("cannot {wanted} {name}")]
    Monitor {
        /// Of which VM.
        name: String,
        /// What was asked, as an infinitive.
        wanted: &'static str,
        /// The cause.
        source: MonitorError,
    },
    /// Something on the host cannot be had.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its network cannot be had, for what it is or where this is.
    #[error("cannot have such a network")]
    NoNetwork(#[source] NetworkError),
    /// A VM that begins has no network, though it is to have one.
    #[error("cannot give {name} a network")]
    Network {
        /// Which VM.
        name: String,
        /// The cause.
        source: NetworkError,
    },
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A thread that was to do it panicked.
    #[error("an operation was cut short by a bug; the daemon's log says more")]
    CutShort,
}

impl FleetError {
    /// The causes, outermost first, for people.
    pub(crate) fn because(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            if let Some(MonitorError::Refused(chain)) = cause.downcast_ref() {
                causes.extend(chain.iter().skip(1).cloned());
            }
            next = cause.source();
        }
        if let Self::Boot { console, .. } = self {
            causes.extend(console.iter().cloned());
        }
        causes
    }

    /// All of it in one line, for a report that has one line for it.
    pub(crate) fn in_one_line(&self) -> String {
        let mut line = self.to_string();
        for cause in self.because() {
            line.push_str(": ");
            line.push_str(&cause);
        }
        line
    }
}

/// Makes a [`FleetError::Host`].
pub(crate) fn cannot<E: Into<Box<dyn Error + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> FleetError {
    let what = what.into();
    move |source| FleetError::Host { what, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_monitor_is_told_whole_and_once() {
        let chain = vec!["the disk is no disk".to_owned(), "its journal is damaged".to_owned()];
        let error =
            FleetError::Monitor { name: "base".into(), wanted: "boot", source: MonitorError::Refused(chain.clone()) };
        assert_eq!(error.to_string(), "cannot boot base");
        assert_eq!(error.because(), chain);
        assert_eq!(error.in_one_line(), "cannot boot base: the disk is no disk: its journal is damaged");
    }
}
