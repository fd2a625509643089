#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| offload_core::fuzzing::worker_frames(input));
