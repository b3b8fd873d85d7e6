//! The name of the instruction set for which the kernels are selected.

use pulp::Arch;

/// The instruction set that the kernels use on this processor: `AVX-512`, `AVX2`, `NEON`, or
/// `scalar`, without vectors.
///
/// It is the best one of these that the processor has and that the kernels are compiled for.
///
/// # Examples
/// ```
/// println!("computed with {}", cpu_kernels::instruction_set());
/// ```
pub fn instruction_set() -> &'static str {
    match Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "AVX-512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "AVX2",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON",
        _ => "scalar",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `cargo xtask emulate` runs the tests, it tells what processor it emulates.
    #[test]
    fn the_instructions_of_the_emulated_processor_are_used() {
        if let Ok(expected) = std::env::var("EMULATED_INSTRUCTION_SET") {
            assert_eq!(instruction_set(), expected);
        }
    }
}
