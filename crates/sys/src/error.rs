//! Which call failed, and what the kernel said.

use std::{fmt, io};

/// A call to the kernel that failed.
#[derive(Debug)]
pub struct SysError {
    /// The call, as its manual page names it.
    pub call: &'static str,
    source: io::Error,
}

impl SysError {
    pub(crate) fn last(call: &'static str) -> Self {
        Self { call, source: io::Error::last_os_error() }
    }

    pub(crate) fn io(call: &'static str, source: io::Error) -> Self {
        Self { call, source }
    }

    /// A list for the kernel that does not fit the kernel's limits.
    pub(crate) fn too_many(call: &'static str) -> Self {
        Self { call, source: io::Error::from(io::ErrorKind::InvalidInput) }
    }

    /// A model-specific register that KVM does not take.
    pub(crate) fn refused_msr(index: u32) -> Self {
        Self { call: "KVM_SET_MSRS", source: io::Error::other(format!("this host refuses MSR {index:#x}")) }
    }

    /// A call that the kernel let through, and that did not do what it is there for.
    pub(crate) fn other(call: &'static str, how: String) -> Self {
        Self { call, source: io::Error::other(how) }
    }

    /// Names the call in an error of `kvm-ioctls`.
    pub(crate) fn kvm(call: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> Self {
        move |error| Self { call, source: io::Error::from_raw_os_error(error.errno()) }
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.call)
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
