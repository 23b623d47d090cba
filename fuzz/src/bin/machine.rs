//! The state of a machine that is the input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_vmm::fuzz_machine(data));
