//! What became of frames.

/// How many frames went each way since the card was made, and why others did not. Nothing of it is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// The host took these.
    pub sent: u64,
    /// The driver got these.
    pub received: u64,
    /// Sent while the link was down.
    pub sent_without_link: u64,
    /// Shorter than headers are, or with a header that says what cannot be, or what was not agreed on.
    pub sent_malformed: u64,
    /// Longer than [`MAX_FRAME_BYTES`](super::MAX_FRAME_BYTES).
    pub sent_too_long: u64,
    /// From another hardware address than the card's.
    pub sent_as_another: u64,
    /// The host refused these.
    pub sent_refused: u64,
    /// Longer than all buffers that the driver had for it.
    pub received_too_long: u64,
    /// The host could not hand these over.
    pub received_broken: u64,
}
