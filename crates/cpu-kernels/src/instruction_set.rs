//! The choice of the instruction set.

#[cfg(not(target_arch = "wasm32"))]
use pulp::Arch;
use pulp::WithSimd;

/// Compiles `work` for each instruction set and runs the best version that this machine supports.
#[cfg(not(target_arch = "wasm32"))]
#[inline(always)]
pub(crate) fn dispatch<W: WithSimd>(work: W) -> W::Output {
    Arch::new().dispatch(work)
}

/// Compiles `work` for the instruction set of the build alone: a browser refuses a program with
/// instructions that it does not know, even if they are never run.
#[cfg(target_arch = "wasm32")]
#[inline(always)]
pub(crate) fn dispatch<W: WithSimd>(work: W) -> W::Output {
    use pulp::Simd;
    #[cfg(target_feature = "relaxed-simd")]
    // SAFETY: the program would not have started without these instructions.
    let simd = unsafe { pulp::wasm::RelaxedSimd::new_unchecked() };
    #[cfg(all(target_feature = "simd128", not(target_feature = "relaxed-simd")))]
    // SAFETY: as above.
    let simd = unsafe { pulp::wasm::Simd128::new_unchecked() };
    #[cfg(not(target_feature = "simd128"))]
    let simd = pulp::Scalar;
    Simd::vectorize(simd, work)
}

/// The instruction set that the kernels use on this processor: `AVX-512`, `AVX2`, `NEON`, or
/// `scalar`, without vectors.
///
/// It is the best one of these that the processor has and that the kernels are compiled for. A
/// WebAssembly program has the one that it is compiled for: `relaxed SIMD`, `SIMD128` or `scalar`.
///
/// # Examples
/// ```
/// println!("computed with {}", cpu_kernels::instruction_set());
/// ```
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "wasm32")]
    let name = if cfg!(target_feature = "relaxed-simd") {
        "relaxed SIMD"
    } else if cfg!(target_feature = "simd128") {
        "SIMD128"
    } else {
        "scalar"
    };
    #[cfg(not(target_arch = "wasm32"))]
    let name = match Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "AVX-512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "AVX2",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON",
        _ => "scalar",
    };
    name
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
