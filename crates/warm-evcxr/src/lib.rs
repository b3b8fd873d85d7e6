//! Starts the evcxr Jupyter kernel with the dependencies of its cells compiled already.
//!
//! | module | what it does |
//! |---|---|
//! | [`files`] | files and folders, whole or not at all |
//! | [`toolchain`] | Cargo and rustc, without what surrounds this process |
//! | [`metadata`] | what rust-analyzer is told of a cell's crates |
//! | [`pool`] | the folder of build folders, one for each kernel that runs |
//! | [`evcxr`] | the kernel's program, found or built |
//! | [`template`] | the build folder that the others are copied from |
//! | [`kernel`] | what Jupyter starts |
//!
//! Each imports only from those above it.

pub mod files;
pub mod toolchain;

pub mod metadata;
pub mod pool;

pub mod evcxr;
pub mod template;

pub mod kernel;
