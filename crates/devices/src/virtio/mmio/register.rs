//! Where each register lies, under the names of the specification.

use virtio_bindings::virtio_mmio as spec;

pub(super) const MAGIC_VALUE: u64 = spec::VIRTIO_MMIO_MAGIC_VALUE as u64;
pub(super) const VERSION: u64 = spec::VIRTIO_MMIO_VERSION as u64;
pub(super) const DEVICE_ID: u64 = spec::VIRTIO_MMIO_DEVICE_ID as u64;
pub(super) const VENDOR_ID: u64 = spec::VIRTIO_MMIO_VENDOR_ID as u64;
pub(super) const DEVICE_FEATURES: u64 = spec::VIRTIO_MMIO_DEVICE_FEATURES as u64;
pub(super) const DEVICE_FEATURES_SEL: u64 = spec::VIRTIO_MMIO_DEVICE_FEATURES_SEL as u64;
pub(super) const DRIVER_FEATURES: u64 = spec::VIRTIO_MMIO_DRIVER_FEATURES as u64;
pub(super) const DRIVER_FEATURES_SEL: u64 = spec::VIRTIO_MMIO_DRIVER_FEATURES_SEL as u64;
pub(super) const QUEUE_SEL: u64 = spec::VIRTIO_MMIO_QUEUE_SEL as u64;
pub(super) const QUEUE_NUM_MAX: u64 = spec::VIRTIO_MMIO_QUEUE_NUM_MAX as u64;
pub(super) const QUEUE_NUM: u64 = spec::VIRTIO_MMIO_QUEUE_NUM as u64;
pub(super) const QUEUE_READY: u64 = spec::VIRTIO_MMIO_QUEUE_READY as u64;
pub(super) const QUEUE_NOTIFY: u64 = spec::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
pub(super) const INTERRUPT_STATUS: u64 = spec::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
pub(super) const INTERRUPT_ACK: u64 = spec::VIRTIO_MMIO_INTERRUPT_ACK as u64;
pub(super) const STATUS: u64 = spec::VIRTIO_MMIO_STATUS as u64;
pub(super) const QUEUE_DESC_LOW: u64 = spec::VIRTIO_MMIO_QUEUE_DESC_LOW as u64;
pub(super) const QUEUE_DESC_HIGH: u64 = spec::VIRTIO_MMIO_QUEUE_DESC_HIGH as u64;
pub(super) const QUEUE_DRIVER_LOW: u64 = spec::VIRTIO_MMIO_QUEUE_AVAIL_LOW as u64;
pub(super) const QUEUE_DRIVER_HIGH: u64 = spec::VIRTIO_MMIO_QUEUE_AVAIL_HIGH as u64;
pub(super) const QUEUE_DEVICE_LOW: u64 = spec::VIRTIO_MMIO_QUEUE_USED_LOW as u64;
pub(super) const QUEUE_DEVICE_HIGH: u64 = spec::VIRTIO_MMIO_QUEUE_USED_HIGH as u64;
pub(super) const SHM_LEN_LOW: u64 = spec::VIRTIO_MMIO_SHM_LEN_LOW as u64;
pub(super) const SHM_BASE_HIGH: u64 = spec::VIRTIO_MMIO_SHM_BASE_HIGH as u64;
pub(super) const CONFIG_GENERATION: u64 = spec::VIRTIO_MMIO_CONFIG_GENERATION as u64;
pub(super) const CONFIG: u64 = spec::VIRTIO_MMIO_CONFIG as u64;

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// The version of this layout of registers.
pub(super) const LAYOUT: u32 = 2;
/// "PNDO", little-endian.
pub(super) const VENDOR: u32 = 0x4f44_4e50;

/// Bits of [`STATUS`].
pub(super) mod status {
    use virtio_bindings::virtio_config as spec;

    pub(crate) const DRIVER: u32 = spec::VIRTIO_CONFIG_S_DRIVER;
    pub(crate) const FEATURES_OK: u32 = spec::VIRTIO_CONFIG_S_FEATURES_OK;
    pub(crate) const DRIVER_OK: u32 = spec::VIRTIO_CONFIG_S_DRIVER_OK;
    pub(crate) const NEEDS_RESET: u32 = spec::VIRTIO_CONFIG_S_NEEDS_RESET;
    pub(crate) const FAILED: u32 = spec::VIRTIO_CONFIG_S_FAILED;
    /// All that a driver may set.
    pub(crate) const BY_DRIVER: u32 = spec::VIRTIO_CONFIG_S_ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
}

/// Bits of [`INTERRUPT_STATUS`].
pub(super) mod interrupt {
    use virtio_bindings::virtio_mmio as spec;

    /// The device gave buffers back.
    pub(crate) const USED_BUFFER: u32 = spec::VIRTIO_MMIO_INT_VRING;
    /// The device's configuration or status changed.
    pub(crate) const CONFIGURATION: u32 = spec::VIRTIO_MMIO_INT_CONFIG;
}
