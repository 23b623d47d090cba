//! Which VM has which ports of the host.

use super::bind::Bound;
use super::connection::MAX_CONNECTIONS;
use super::listener::Listener;
use crate::fleet::Fleet;
use pando_wire::api::{Publish, Published};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Every published port of this daemon.
#[derive(Debug)]
pub(crate) struct Board {
    vms: Mutex<HashMap<String, OfVm>>,
    /// A place for each connection.
    room: Arc<Semaphore>,
}

/// Those of one VM, and what serves them.
#[derive(Debug, Default)]
struct OfVm {
    ports: Vec<(Publish, Problem)>,
    tasks: JoinSet<()>,
}

/// Why nothing listens on a port just now, when that is so.
#[derive(Debug, Clone, Default)]
pub(super) struct Problem(Arc<Mutex<Option<String>>>);

impl Default for Board {
    fn default() -> Self {
        Self { vms: Mutex::default(), room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Board {
    /// Serves `ports` of VM `id` from here on, until they are closed or the daemon ends.
    pub(crate) fn serve(&self, fleet: &Fleet, id: &str, ports: Vec<Bound>) {
        if ports.is_empty() {
            return;
        }
        let mut vms = self.lock();
        let of_vm = vms.entry(id.to_owned()).or_default();
        for bound in ports {
            let (port, problem) = (bound.port, Problem::default());
            problem.set(bound.problem());
            of_vm.ports.push((port, problem.clone()));
            let (fleet, id, room) = (fleet.clone(), id.to_owned(), Arc::clone(&self.room));
            of_vm.tasks.spawn(Listener { fleet, id, port, problem, room }.serve(bound));
        }
    }

    /// The ports of the host that are ports of VM `id`, by the VM's port.
    pub(crate) fn of(&self, id: &str) -> Vec<Published> {
        let vms = self.lock();
        let ports = vms.get(id).into_iter().flat_map(|of_vm| &of_vm.ports);
        let mut shown: Vec<_> = ports.map(|(port, problem)| show(port, problem.get())).collect();
        shown.sort_by_key(|port| (port.guest_port, port.host()));
        shown
    }

    /// Ends what there is of VM `id`. When this comes back, nothing listens on its ports.
    pub(crate) async fn close(&self, id: &str) {
        let of_vm = self.lock().remove(id);
        if let Some(mut of_vm) = of_vm {
            of_vm.tasks.shutdown().await;
        }
    }

    /// Waits until nothing is served any more, which the daemon's end brings about.
    pub(crate) async fn ended(&self) {
        let all: Vec<_> = self.lock().values_mut().map(|of_vm| std::mem::take(&mut of_vm.tasks)).collect();
        for mut tasks in all {
            while tasks.join_next().await.is_some() {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfVm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Problem {
    /// Says which, or that there is none.
    pub(super) fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn show(&Publish { address, host_port, guest_port }: &Publish, problem: Option<String>) -> Published {
    Published { address, host_port, guest_port, problem }
}
