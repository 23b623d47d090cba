//! One operation at a time per VM.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// A lock for every VM that anybody ever locked and nobody removed.
#[derive(Debug, Default)]
pub(super) struct Turns {
    vms: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    images: Arc<tokio::sync::Mutex<()>>,
}

impl Turns {
    /// Waits until no other operation on VM `id` goes on.
    pub(super) async fn vm(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(vms.entry(id.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Waits until nobody else adds or removes an image.
    pub(super) async fn images(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.images).lock_owned().await
    }

    /// Forgets the lock of a VM that is no more. Whoever still waits for it finds no VM.
    pub(super) fn forget(&self, id: &str) {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
