//! Saved states of devices that are the input, over guest memory that is too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_devices::fuzz_state(data));
