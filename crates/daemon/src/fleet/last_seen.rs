//! What can be seen of a VM that did not come to life. It is for the log: nothing of the VM is left afterwards.

use super::{Fleet, blocking, logs};
use crate::db::Record;
use crate::monitor::Monitor;
use pando_sys::threads;
use pando_wire::control::{Request, Response, VcpuPlace};
use std::time::Duration;
use tokio::time::sleep;

/// How long its monitor may take to tell where the vCPUs are.
const PATIENCE: Duration = Duration::from_secs(1);
/// After so long it is asked again: whether the guest is where it was.
const LATER: Duration = Duration::from_millis(100);

impl Fleet {
    /// Logs the end of the console of `vm`, and, if its monitor lives, what that one's threads are at and where in the guest
    /// its vCPUs are, now and a moment later.
    pub(super) async fn log_last_seen(&self, vm: &Record) {
        let (paths, id) = (self.0.paths.clone(), vm.id.clone());
        let pid = self.0.supervisor.live(&id).map(|live| live.pid());
        let vcpus = match pid {
            Some(_) => [self.vcpus(&id).await, {
                sleep(LATER).await;
                self.vcpus(&id).await
            }],
            None => [None, None],
        };
        let seen = blocking(move || Ok((logs::last_lines(&paths, &id, 0), pid.map_or(Vec::new(), threads))));
        let Ok((console, threads)) = seen.await else { return };
        tracing::warn!(vm = vm.id, name = vm.name, ?console, ?threads, ?vcpus, "it did not come to life");
    }

    async fn vcpus(&self, id: &str) -> Option<Vec<String>> {
        let monitor = Monitor::connect(&self.0.paths.control_socket(id)).ok()?;
        match monitor.call(&Request::Vcpus, &[], PATIENCE).await {
            Ok(Response::Vcpus(places)) => Some(places.iter().map(told).collect()),
            _ => None,
        }
    }
}

fn told(place: &VcpuPlace) -> String {
    let VcpuPlace { rip, rflags, is_halted } = place;
    format!("{} at {rip:#x}, flags {rflags:#x}", if *is_halted { "halted" } else { "runs" })
}
