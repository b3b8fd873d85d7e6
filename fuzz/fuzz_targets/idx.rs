//! Fuzzes [`tests::fuzz::idx`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::idx(bytes));
