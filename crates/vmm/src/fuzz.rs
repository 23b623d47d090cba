//! The entry point of a fuzz target: whatever a store says that a machine was. It only has to return.
#![allow(clippy::unwrap_used, reason = "for fuzz targets and tests only")]

use crate::machine::MachineState;
use pando_wire::saved::Machine;
use std::ops::RangeInclusive;

/// Those of a machine's state. Each has a seed, `fuzz/seeds/machine/VERSION`, which is the state in a fixture.
const VERSIONS: RangeInclusive<u32> = 1..=3;

/// `data` is the state of a machine, of any version. What is read of it is written and read once more, and is the same.
pub fn fuzz_machine(data: &[u8]) {
    for version in VERSIONS {
        let Ok(mut state) = MachineState::decode(&described(version), data) else { continue };
        let written = state.encode().unwrap();
        let again = MachineState::decode(&state.described(), &written).unwrap();
        assert_eq!(again.encode().unwrap(), written);
        state.wake();
    }
}

fn described(version: u32) -> Machine {
    Machine { kind: "pando-vmm".into(), version, arch: "x86_64".into(), cpu_features: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn seed(version: u32) -> Vec<u8> {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/machine");
        fs::read(seeds.join(version.to_string())).unwrap()
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_are_machines_of_every_version_and_do_no_harm() {
        for version in VERSIONS {
            let machine = MachineState::decode(&described(version), &seed(version)).unwrap();
            assert_eq!(machine.described().version, *VERSIONS.end(), "what this build writes has a seed");
            fuzz_machine(&seed(version));
        }
    }

    /// A stand-in for a fuzzer: a seed with some bytes changed.
    #[test]
    fn random_lies_do_no_harm() {
        let seed = seed(*VERSIONS.end());
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        for _ in 0..2000 {
            let mut lie = seed.clone();
            for _ in 0..1 + next() % 4 {
                let at = next() % lie.len();
                lie[at] = next() as u8;
            }
            lie.truncate(lie.len() - if next() % 2 == 0 { 0 } else { next() % lie.len() });
            fuzz_machine(&lie);
        }
    }
}
