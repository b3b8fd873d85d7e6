//! Starts the evcxr Jupyter kernel with precompiled dependencies.
//!
//! | module | what it does |
//! |---|---|
//! | [`files`] | file and folder helpers |
//! | [`toolchain`] | runs Cargo and rustc in a clean environment |
//! | [`metadata`] | limits what rust-analyzer reads to crates near the cells |
//! | [`pool`] | build folders, one for each running kernel |
//! | [`evcxr`] | finds or builds the kernel program |
//! | [`template`] | the build folder that the others are copied from |
//! | [`kernel`] | the launcher that Jupyter starts |
//!
//! Each module imports only from those above it.

pub mod files;
pub mod toolchain;

pub mod metadata;
pub mod pool;

pub mod evcxr;
pub mod template;

pub mod kernel;
