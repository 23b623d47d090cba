//! A guest and a client on the host that do what the input says while one vsock connection lives.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_devices::fuzz_vsock(data));
