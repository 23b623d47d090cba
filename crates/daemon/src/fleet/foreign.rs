//! VMs of another build, whose monitors speak another version of the control protocol: they are shown, and for the rest
//! left alone until they end, or a daemon of that build takes them over.

use super::Fleet;
use super::error::FleetError;
use crate::db::Record;
use crate::monitor::MonitorError;
use pando_wire::api::Vm;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

impl Fleet {
    /// What `error` means of the monitor of VM `id`, which was asked to do `what`: one of an earlier build that speaks our
    /// language, but for this word, closes the connection and lives.
    pub(super) fn unknown_to_earlier(&self, id: &str, error: MonitorError, what: &str) -> MonitorError {
        match error {
            MonitorError::Ended if self.0.supervisor.live(id).is_some() => {
                MonitorError::Refused(vec![format!("its monitor is of an earlier build, which cannot {what}")])
            }
            error => error,
        }
    }
}

/// Which VMs these are, by id, and which version their monitors speak.
#[derive(Debug, Default)]
pub(super) struct Foreign(Mutex<HashMap<String, u32>>);

impl Foreign {
    /// The monitor of VM `id` speaks `version`. The answer is whether that is news.
    pub(super) fn note(&self, id: &str, version: u32) -> bool {
        self.lock().insert(id.to_owned(), version).is_none()
    }

    /// The monitor of VM `id` has ended.
    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Refuses whatever is asked of such a VM.
    pub(super) fn check(&self, record: &Record) -> Result<(), FleetError> {
        match self.lock().get(&record.id) {
            Some(&version) => Err(FleetError::Foreign { name: record.name.clone(), version }),
            None => Ok(()),
        }
    }

    /// A VM as the API shows it: of such a one, why nothing can be asked of it.
    pub(super) fn show(&self, record: Record) -> Vm {
        let refusal = self.check(&record).err().map(|error| error.to_string());
        let vm = record.into_api();
        Vm { ending: refusal.or(vm.ending), ..vm }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
