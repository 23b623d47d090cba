//! What can be seen of a VM that did not come to life. It is for the log: nothing of the VM is left afterwards.

use super::{Fleet, blocking, logs};
use crate::db::Record;
use pando_sys::threads;

impl Fleet {
    /// Logs the end of the console of `vm`, and what the threads of its monitor are at, if it lives.
    pub(super) async fn log_last_seen(&self, vm: &Record) {
        let (paths, id) = (self.0.paths.clone(), vm.id.clone());
        let pid = self.0.supervisor.live(&id).map(|live| live.pid());
        let seen = blocking(move || Ok((logs::last_lines(&paths, &id, 0), pid.map_or(Vec::new(), threads))));
        let Ok((console, threads)) = seen.await else { return };
        tracing::warn!(vm = vm.id, name = vm.name, ?console, ?threads, "it did not come to life");
    }
}
