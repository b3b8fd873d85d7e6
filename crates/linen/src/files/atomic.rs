//! Atomic file writes.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::{NamedTempFile, PersistError};

use crate::error::{Error, Result};

/// The name of a file being written is this, the final name, and some letters. A leftover one means
/// that its process was killed.
pub const PARTIAL: &str = ".partial-";

/// Writes a file atomically: it appears under its name once all of it is on disk.
///
/// Until then, and after an error, a kill or a power cut, an existing file stays unchanged.
///
/// # Errors
/// [`Error::Save`] if the file cannot be written.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    write_with(path, content, |partial, path| partial.persist(path)).map_err(Error::save(path))
}

/// [`write()`], unless there is a file already: that one stays.
///
/// # Errors
/// [`Error::Save`] if the file cannot be written, also because there is one.
#[cfg(any(feature = "cuda", test))]
pub(crate) fn write_first(path: &Path, content: &[u8]) -> Result<()> {
    write_with(path, content, |partial, path| partial.persist_noclobber(path))
        .map_err(Error::save(path))
}

fn write_with(
    path: &Path,
    content: &[u8],
    persist: impl FnOnce(NamedTempFile, &Path) -> Result<File, PersistError>,
) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut prefix = OsString::from(PARTIAL);
    prefix.push(path.file_name().unwrap_or_default());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    // Temporary files are private by default; use the permissions of ordinary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut partial = builder.tempfile_in(folder)?;
    partial.write_all(content)?;
    partial.as_file().sync_all()?;
    persist(partial, path)?;
    // Windows cannot open a directory as a file.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
