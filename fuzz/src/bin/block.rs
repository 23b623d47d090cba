//! A guest whose memory, block queue and requests are the input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_devices::fuzz_block(data));
