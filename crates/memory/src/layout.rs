//! Which guest-physical ranges exist.
//!
//! ```text
//! 0                       3 GiB        0xd000_0000       0xfec0_0000        4 GiB
//! |  RAM, first region ...  |   nothing   |    virtio…    | APICs, TSS, BIOS |  RAM, second region …
//! ```

use pando_sys::HUGE_PAGE;

/// Where the first region of RAM ends at the latest.
pub const LOW_END: u64 = 3 << 30;
/// Where the second region begins.
pub const HIGH_START: u64 = 4 << 30;
/// The first virtio device; each next one is [`MMIO_DEVICE_LEN`] further.
pub const MMIO_DEVICES: u64 = 0xd000_1000;
/// How much address space one device has.
pub const MMIO_DEVICE_LEN: u64 = 0x1000;
/// The least RAM with which a stock kernel and its initramfs come up.
pub const MIN_BYTES: u64 = 128 << 20;
/// The most RAM that a guest can have.
pub const MAX_BYTES: u64 = 64 << 30;

/// Why there is no layout for a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Below [`MIN_BYTES`] or above [`MAX_BYTES`].
    #[error("{0} MiB of memory is outside the range of {min} to {max} MiB", min = MIN_BYTES >> 20, max = MAX_BYTES >> 20)]
    Size(u64),
    /// Not a multiple of 2 MiB.
    #[error("{0} bytes of memory is not a multiple of 2 MiB")]
    Alignment(u64),
}

/// The ranges `(start, length)` of RAM in a guest with `len_bytes` of it.
pub fn ram_ranges(len_bytes: u64) -> Result<Vec<(u64, u64)>, LayoutError> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&len_bytes) {
        return Err(LayoutError::Size(len_bytes >> 20));
    }
    if !len_bytes.is_multiple_of(HUGE_PAGE) {
        return Err(LayoutError::Alignment(len_bytes));
    }
    let low = len_bytes.min(LOW_END);
    let high = len_bytes - low;
    let mut ranges = vec![(0, low)];
    if high > 0 {
        ranges.push((HIGH_START, high));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_hole_is_one_region() {
        assert_eq!(ram_ranges(512 << 20), Ok(vec![(0, 512 << 20)]));
        assert_eq!(ram_ranges(LOW_END), Ok(vec![(0, LOW_END)]));
    }

    #[test]
    fn memory_over_three_gib_goes_on_above_the_hole() {
        assert_eq!(ram_ranges(LOW_END + HUGE_PAGE), Ok(vec![(0, LOW_END), (HIGH_START, HUGE_PAGE)]));
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused_by_name() {
        assert_eq!(ram_ranges(64 << 20), Err(LayoutError::Size(64)));
        assert_eq!(ram_ranges(65 << 30), Err(LayoutError::Size(65 << 10)));
        assert_eq!(ram_ranges((512 << 20) + 4096), Err(LayoutError::Alignment((512 << 20) + 4096)));
    }
}
