//! PID 1, as bytes.

/// The agent of this build: a static ELF binary for x86-64.
pub const AGENT: &[u8] = include_bytes!(env!("PANDO_AGENT"));
