//! File and folder helpers.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file, creating its folder if needed. A file with the same text is left alone.
///
/// # Errors
/// If the folder or the file cannot be written; the message names it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes an executable file.
///
/// # Errors
/// If it cannot be written; the message names it.
pub fn write_program(path: &Path, text: &str) -> Result<()> {
    // Git may have added carriage returns, which would become part of the interpreter's name.
    write(path, &text.replace('\r', ""))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

/// Creates a folder and its parents.
///
/// # Errors
/// If it cannot be created; the message names the folder.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Creates a symbolic link to `target`, replacing any other, and its folder if needed.
///
/// # Errors
/// If it cannot be created; the message names the link.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if let Some(folder) = link.parent() {
        make_folder(folder)?;
    }
    let _ = fs::remove_file(link);
    symlink(target, link).with_context(|| format!("cannot create {}", link.display()))
}

/// Removes a folder if it exists.
///
/// # Errors
/// If it exists and cannot be removed.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The total size of all files in a folder, in bytes.
///
/// # Errors
/// If the folder cannot be read.
pub fn size(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        Ok(sum + if is_folder { size(&entry.path())? } else { entry.metadata()?.len() })
    })
}

/// Copies a folder, all or nothing, with modification times, by which Cargo knows what is fresh.
///
/// Uses no hard links: Cargo overwrites its records in place, which would change both folders.
/// Blocks are shared between copies where the file system supports it.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let unfinished = to.with_extension("copy");
    remove(&unfinished)?;
    let copied = copy_files(from, &unfinished);
    if copied.is_err() {
        // Free the space of a partial copy: the disk may be full.
        let _ = remove(&unfinished);
    }
    copied?;
    fs::rename(&unfinished, to)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies a file with its modification time. The new file's folder must exist.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    let times = FileTimes::new().set_modified(fs::metadata(from)?.modified()?);
    File::open(to)?.set_times(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_windows_line_endings_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        write_program(&path, "#!/bin/sh\r\nexit 7\r\n").unwrap();
        assert_eq!(std::process::Command::new(path).status().unwrap().code(), Some(7));
    }

    #[test]
    fn errors_name_the_folder_that_cannot_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        write(&file, "").unwrap();
        let error = format!("{:#}", write(&file.join("below/text"), "").unwrap_err());
        assert!(error.contains("file/below"), "{error}");
    }
}
