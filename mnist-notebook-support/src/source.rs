//! The project's own code, shown beside the text that explains it.

use linen::Result;
use notebook_display::{Source, Sources};

/// The tutorial first: where two crates have an item of one name, it is the tutorial's.
static SOURCES: Sources = Sources::new(&[
    ("mnist-notebook-support/src", &crate::SOURCES),
    ("crates/linen/src", &linen::SOURCES),
    ("crates/images/src", &images::SOURCES),
    ("crates/inspect/src", &inspect::SOURCES),
    ("crates/take-away/src", &take_away::SOURCES),
    ("crates/notebook-display/src", &notebook_display::SOURCES),
    ("crates/jax-random/src", &jax_random::SOURCES),
    ("crates/cpu-kernels/src", &cpu_kernels::SOURCES),
]);

/// The code of one of the project's items, with the first sentence of its documentation.
///
/// # Errors
/// [`UnknownItem`](notebook_display::Error::UnknownItem) if there is no such item; the message lists
/// similar names.
///
/// # Examples
/// ```
/// use mnist_notebook_support::source;
///
/// let code = source("train_step")?.to_string();
/// assert!(code.starts_with("// mnist-notebook-support/src/step.rs\n"));
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub fn source(name: &str) -> Result<Source> {
    Ok(SOURCES.find(name)?)
}

/// The same with all of its documentation.
///
/// # Errors
/// Those of [`source`].
pub fn source_with_docs(name: &str) -> Result<Source> {
    Ok(SOURCES.find_with_docs(name)?)
}
