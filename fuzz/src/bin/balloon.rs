//! A guest whose memory, balloon queues and free pages are the input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_devices::fuzz_balloon(data));
