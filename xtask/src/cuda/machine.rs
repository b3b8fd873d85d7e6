//! The other machine, on which bundles run.

/// The default compute capability, overridden by `CUDA_COMPUTE_CAP`: that of an H100 or H200.
const COMPUTE_CAP: &str = "90";
/// The start of the scripts that run there: they check its Python and its driver and find CUDA's
/// libraries.
const CHECKS: &str = include_str!("machine.sh");

/// The compute capability to build for.
pub(super) fn compute_cap() -> String {
    std::env::var("CUDA_COMPUTE_CAP").unwrap_or(COMPUTE_CAP.to_owned())
}

/// A script with [`CHECKS`] in its place.
pub(super) fn with_checks(script: &str) -> String {
    script.replace("# @MACHINE@", CHECKS)
}
