//! A working set that is the input; once as it is, and once as the payload of a file whose checksum is right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_store::fuzz_working_set(data));
