//! Fuzzes [`tests::fuzz::picture`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::picture(bytes));
