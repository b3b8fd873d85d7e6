//! The pool of threads.

/// Runs `work` on a pool thread, so that the pool need not be woken for every phase of a step.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
