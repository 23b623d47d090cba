//! Whether the host has memory for one more.
//!
//! What a VM will come to need nobody knows: this refuses what the host cannot even begin, and promises nothing.

use super::error::FleetError;
use crate::usage;
use std::path::Path;

/// What a boot needs: no guest of less RAM is made.
pub(super) const PER_BOOT: u64 = 128 << 20;
/// What a child may come to need for itself soon after the fork. One that is idle, has answered and has run a program
/// has about 5 MiB (`bench/linux` prints it); this is three times as much.
pub(super) const PER_CHILD: u64 = 16 << 20;
/// What the host keeps.
const FOR_HOST: u64 = 256 << 20;

/// Refuses `what` when the host does not have `needed` bytes for it by its `meminfo`. Where it cannot be told, it is let
/// be.
pub(super) fn check(meminfo: &Path, what: impl FnOnce() -> String, needed: u64) -> Result<(), FleetError> {
    usage::available_bytes(meminfo).map_or(Ok(()), |available| fits(what, needed, available))
}

fn fits(what: impl FnOnce() -> String, needed: u64, available: u64) -> Result<(), FleetError> {
    let needed = FOR_HOST.saturating_add(needed);
    if needed <= available {
        return Ok(());
    }
    Err(FleetError::NoRoom { what: what(), needed_mib: needed >> 20, available_mib: available >> 20 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_cannot_hold_is_refused_with_figures() {
        let what = || "3 children of base".to_owned();
        assert!(fits(what, 3 * PER_CHILD, FOR_HOST + 3 * PER_CHILD).is_ok());
        let error = fits(what, 3 * PER_CHILD, FOR_HOST + 3 * PER_CHILD - 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no room for 3 children of base: 304 MiB may be needed, and 303 MiB are available"
        );
    }
}
