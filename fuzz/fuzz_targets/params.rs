//! Fuzzes [`tests::fuzz::params`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::params(bytes));
