//! A layer's manifest that is the input; once as it is, and once as the payload of a file whose checksums are right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pando_store::fuzz_manifest(data));
