//! How far long work is, for whoever asked for it and looks on.

use super::Fleet;
use pando_store::Meter;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The work that somebody looks on at, by what they call it. It is forgotten when it ends.
#[derive(Debug, Default)]
pub(crate) struct Watched(Mutex<HashMap<String, Weak<Meter>>>);

impl Fleet {
    /// A meter for work that begins now, which can be read as `name`; without a name, by nobody.
    pub(super) fn meter(&self, name: Option<String>) -> Arc<Meter> {
        let meter = Arc::default();
        if let Some(name) = name {
            let mut all = self.0.watched.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, meter| meter.strong_count() > 0);
            all.insert(name, Arc::downgrade(&meter));
        }
        meter
    }

    /// How many files are done and how many there are, of work that goes on and is called so.
    pub(crate) fn progress(&self, name: &str) -> Option<(u64, u64)> {
        let all = self.0.watched.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(all.get(name)?.upgrade()?.read())
    }
}
