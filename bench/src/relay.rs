//! The relay: a toy guest whose CPUs pass one interrupt on from each to the next, for ever.
//!
//! There is only one, so when it is lost between two CPUs, all of them wait for it for ever. In a Linux guest that is a
//! CPU that waits for another to have looked at its page tables.
//!
//! Its code is `relay.s`; the bytes beside it are made as those of the [`Witness`](crate::Witness).

use crate::monitor::Guest;
use crate::toy::executable;

const CODE: &[u8] = include_bytes!("relay.bin");

/// A relay. Each CPU writes its number to the serial port whenever the interrupt has come by [`Relay::TURNS`] times.
#[derive(Debug, Clone, Copy)]
pub struct Relay {
    /// 2 to 8.
    pub vcpus: u8,
}

impl Relay {
    /// How often the interrupt comes by a CPU until it says so.
    pub const TURNS: usize = 4;

    /// What to boot.
    pub fn guest(&self, memory_bytes: u64) -> Guest {
        let kernel = executable(CODE, &[u64::from(self.vcpus)]);
        Guest { kernel, vcpus: self.vcpus, memory_bytes, disk_bytes: 4096 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_what_the_source_says() {
        crate::witness::tests::assert_assembled("relay.s", CODE);
    }
}
