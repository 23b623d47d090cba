//! One operation at a time per VM.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// That no other operation on a VM goes on, until it is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

/// A lock for every VM that somebody has, or waits for.
#[derive(Debug, Default)]
pub(super) struct Turns {
    vms: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    images: Arc<tokio::sync::Mutex<()>>,
}

impl Turns {
    /// Waits until no other operation on VM `id` goes on. For a VM that nobody knows of yet this does not wait.
    pub(super) async fn vm(&self, id: &str) -> Turn {
        self.lock(id).lock_owned().await
    }

    /// The same, unless another operation goes on.
    pub(super) fn try_vm(&self, id: &str) -> Option<Turn> {
        self.lock(id).try_lock_owned().ok()
    }

    fn lock(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.retain(|_, lock| lock.strong_count() > 0);
        let known = vms.get(id).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let lock = Arc::default();
            vms.insert(id.to_owned(), Arc::downgrade(&lock));
            lock
        })
    }

    /// Waits until nobody else adds or removes an image.
    pub(super) async fn images(&self) -> Turn {
        Arc::clone(&self.images).lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn two_turns_of_one_vm_follow_each_other_and_nothing_stays_of_them() {
        let turns = Turns::default();
        let first = turns.vm("a").await;
        assert!(turns.vm("a").now_or_never().is_none());
        assert!(turns.try_vm("a").is_none());
        assert!(turns.vm("b").now_or_never().is_some());
        drop(first);
        assert!(turns.vm("a").now_or_never().is_some());
        let _other = turns.vm("c").await;
        assert_eq!(turns.vms.lock().unwrap().len(), 1);
    }
}
