//! Fuzzes [`tests::fuzz::notebook`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::notebook(bytes));
