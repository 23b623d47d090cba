//! What a daemon is told when it starts.

use crate::network::{Cidr, DEFAULT_RANGE};
use rustix::process::geteuid;
use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where a daemon keeps its things and where it listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// What must survive a reboot: the database, images, disks, logs.
    pub state_dir: PathBuf,
    /// Sockets. Must be able to hold them (not every network file system is) and should be a tmpfs.
    pub runtime_dir: PathBuf,
    /// What can be fetched or built again: kernels.
    pub cache_dir: PathBuf,
    /// The Unix socket to listen on. Only this user and root may use it.
    pub socket: PathBuf,
    /// A TCP address to listen on as well, and the bearer token that lets a client in. Never without a token.
    pub tcp: Option<(SocketAddr, String)>,
    /// Where to serve what listens in VMs; not at all when absent.
    pub previews: Option<SocketAddr>,
    /// What the names end in under which that is served: `<port>-<vm>.<domain>`.
    pub preview_domain: String,
    /// The program that is run as `<monitor> vmm --name <name>` for every VM.
    pub monitor: PathBuf,
    /// How long a checkpoint's seed that nobody uses stays in memory once it is stored.
    pub keep_seeds: Duration,
    /// Where VMs with a network have their addresses on this host, two each. Nothing else may use them.
    pub network_range: Cidr,
    /// KVM's device.
    pub kvm: PathBuf,
    /// Where the kernel says how much memory there is.
    pub meminfo: PathBuf,
}

impl Config {
    /// Where a daemon of this user belongs.
    ///
    /// For root `/var/lib/pando`, `/run/pando` and `/var/cache/pando`; for others `pando` below `XDG_DATA_HOME`,
    /// `XDG_RUNTIME_DIR` and `XDG_CACHE_HOME`, or below their defaults (`/tmp/pando-<uid>` for the sockets).
    /// `PANDO_STATE_DIR`, `PANDO_RUNTIME_DIR` and `PANDO_CACHE_DIR` go before both.
    pub fn default_paths() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let uid = geteuid();
        let home = || variable("HOME").unwrap_or_else(|| "/".into());
        let (state, runtime, cache) = if uid.is_root() {
            ("/var/lib/pando".into(), "/run/pando".into(), "/var/cache/pando".into())
        } else {
            (
                variable("XDG_DATA_HOME").unwrap_or_else(|| home().join(".local/share")).join("pando"),
                variable("XDG_RUNTIME_DIR")
                    .map_or_else(|| format!("/tmp/pando-{}", uid.as_raw()).into(), |dir| dir.join("pando")),
                variable("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("pando"),
            )
        };
        let runtime_dir = variable("PANDO_RUNTIME_DIR").unwrap_or(runtime);
        Self {
            state_dir: variable("PANDO_STATE_DIR").unwrap_or(state),
            socket: runtime_dir.join("pando.sock"),
            runtime_dir,
            cache_dir: variable("PANDO_CACHE_DIR").unwrap_or(cache),
            tcp: None,
            previews: Some((Ipv4Addr::LOCALHOST, 7080).into()),
            preview_domain: "localhost".into(),
            // Where the kernel cannot name the program by its path, it still opens it by this one.
            monitor: env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()),
            keep_seeds: Duration::from_mins(10),
            network_range: DEFAULT_RANGE,
            kvm: "/dev/kvm".into(),
            meminfo: "/proc/meminfo".into(),
        }
    }
}
