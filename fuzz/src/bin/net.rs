//! A guest whose memory, network queues and frames are the input, and which is a frame's header besides.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_devices::fuzz_net(data));
