//! Hardware KVM, a software KVM, or none.
//!
//! A software KVM has every ioctl and emulates the guest's CPU, far too slowly and incompletely for a Linux guest. Only
//! time tells the two apart.

use pando_sys::probe;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::time::Duration;

/// What kind of KVM this computer has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Kvm {
    /// The real thing.
    Hardware {
        /// Nanoseconds that a guest's instruction takes, starts and stops included.
        ns_per_instruction: u64,
    },
    /// It emulates the CPU.
    Software {
        /// Nanoseconds that a guest's instruction takes.
        ns_per_instruction: u64,
    },
    /// There is a `/dev/kvm`, and this user may not open it.
    NoPermission,
    /// There is a `/dev/kvm`, and it does not work.
    Broken {
        /// What went wrong.
        why: String,
    },
    /// There is no `/dev/kvm`.
    None,
}

/// Between a hardware KVM inside an emulated computer, seen at 35 to 50 ns an instruction (1 ns on real hardware), and
/// a software KVM, seen at 270 ns and more.
const HARDWARE_LIMIT_NS: u64 = 100;
/// The best of several runs counts: the first one warms up, and other programs take their time from any.
const RUNS: usize = 5;

impl Kvm {
    /// Looks at `/dev/kvm`, for about 0.1 s.
    pub fn find() -> Self {
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
                Ok(kvm) => kvm,
                Err(error) => return Self::not_opened(&error),
            };
            match probe::run(kvm.into()) {
                Ok(time) => best = best.min(time),
                Err(error) => return Self::Broken { why: causes(&error) },
            }
            if Self::of_time(best).is_hardware() {
                break; // More runs would not make it software.
            }
        }
        Self::of_time(best)
    }

    /// Whether Linux guests run well on it.
    pub fn is_hardware(&self) -> bool {
        matches!(self, Self::Hardware { .. })
    }

    /// What to do so that VMs run on this computer's KVM; nothing when they do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Hardware { .. } => None,
            Self::Software { .. } => Some(
                "Linux guests do not get through their boot on it: use a computer with hardware virtualization, or nested \
                 virtualization where this one is a VM",
            ),
            Self::NoPermission => {
                Some("join the group that owns /dev/kvm: sudo usermod -aG kvm $USER, and log in anew")
            }
            Self::Broken { .. } => Some("look for kvm in the kernel's log: sudo dmesg"),
            Self::None => Some(
                "load kvm_intel or kvm_amd, and enable virtualization in the firmware, or nested virtualization where \
                 this computer is a VM",
            ),
        }
    }

    fn not_opened(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::None,
            io::ErrorKind::PermissionDenied => Self::NoPermission,
            _ => Self::Broken { why: error.to_string() },
        }
    }

    fn of_time(time: Duration) -> Self {
        let ns = time.as_nanos() / u128::from(probe::INSTRUCTIONS);
        Self::of_speed(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn of_speed(ns_per_instruction: u64) -> Self {
        if ns_per_instruction <= HARDWARE_LIMIT_NS {
            Self::Hardware { ns_per_instruction }
        } else {
            Self::Software { ns_per_instruction }
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_tells_hardware_from_software() {
        assert!(Kvm::of_speed(0).is_hardware());
        assert!(Kvm::of_speed(50).is_hardware());
        assert!(!Kvm::of_speed(240).is_hardware());
        assert!(!Kvm::of_speed(u64::MAX).is_hardware());
    }

    #[test]
    fn no_device_no_permission_and_a_broken_one_are_three_things() {
        let of = |kind: io::ErrorKind| Kvm::not_opened(&kind.into());
        assert_eq!(of(io::ErrorKind::NotFound), Kvm::None);
        assert_eq!(of(io::ErrorKind::PermissionDenied), Kvm::NoPermission);
        assert!(matches!(of(io::ErrorKind::ResourceBusy), Kvm::Broken { .. }));
    }
}
