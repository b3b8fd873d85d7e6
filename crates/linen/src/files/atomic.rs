//! Files that are there whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// How the name of a file begins while it is being written. One that is left over belonged to a
/// process that was killed.
pub const PARTIAL: &str = ".partial-";

/// Writes a file that appears under its name only when all of it is on the disk.
///
/// What had the name before stays until then, and stays after an error, a kill or a power cut.
///
/// # Errors
/// [`Error::Save`] if that cannot be done.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content).map_err(Error::save(path))
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL);
    // Temporary files are for their owner alone; these are files like any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut partial = builder.tempfile_in(folder)?;
    partial.write_all(content)?;
    partial.as_file().sync_all()?;
    partial.persist(path)?;
    // Elsewhere a folder is no file that could be opened.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
