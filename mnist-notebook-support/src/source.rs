//! Shows the project's own code in a notebook.

use linen::Result;
use notebook_display::{Source, Sources};

/// In the order of the search: the tutorial's items hide others of the same name.
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

/// The code of an item of the project, with the first sentence of its documentation.
///
/// # Errors
/// [`UnknownItem`](notebook_display::Error::UnknownItem) for an unknown name; the message lists
/// similar ones.
///
/// # Examples
/// ```
/// use mnist_notebook_support::source;
///
/// let code = source("train_step")?.to_string();
/// assert!(code.starts_with("// mnist-notebook-support/src/train_step.rs\n"));
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub fn source(name: &str) -> Result<Source> {
    Ok(SOURCES.find(name)?)
}

/// The code of an item with all of its documentation but the examples.
///
/// # Errors
/// Those of [`source`].
pub fn source_with_docs(name: &str) -> Result<Source> {
    Ok(SOURCES.find_with_docs(name)?)
}
