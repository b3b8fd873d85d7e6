//! Files and folders, written and copied so that a process that is killed leaves nothing half done.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file, making its folder if need be, unless it holds just this already.
///
/// # Errors
/// When the folder or the file cannot be written; the message names it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a program: a file that can be executed.
///
/// # Errors
/// When it cannot be written; the message names it.
pub fn write_program(path: &Path, text: &str) -> Result<()> {
    // A shell does not find its interpreter behind a carriage return, which Git may have added.
    write(path, &text.replace('\r', ""))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

/// Makes a folder and all above it.
///
/// # Errors
/// When that cannot be done; the message names the folder.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Makes a link to `target`, in place of one to something else, and its folder if need be.
///
/// # Errors
/// When that cannot be done; the message names the link.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if let Some(folder) = link.parent() {
        make_folder(folder)?;
    }
    let _ = fs::remove_file(link);
    symlink(target, link).with_context(|| format!("cannot make {}", link.display()))
}

/// Removes a folder that may not be there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The bytes of all files in a folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn size(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        Ok(sum + if is_folder { size(&entry.path())? } else { entry.metadata()?.len() })
    })
}

/// Copies a folder, whole or not at all, with the files' times, by which Cargo knows what is fresh.
///
/// No hard links: Cargo overwrites its records in place, and one folder's would become the other's.
/// File systems that can share blocks between copies do so here.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let unfinished = to.with_extension("copy");
    remove(&unfinished)?;
    let copied = copy_files(from, &unfinished);
    if copied.is_err() {
        // A disk that is full shall not stay so for the sake of half a copy.
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
            fs::copy(entry.path(), &target)?;
            let times = FileTimes::new().set_modified(entry.metadata()?.modified()?);
            File::open(&target)?.set_times(times)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_from_a_checkout_with_windows_line_ends_starts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        write_program(&path, "#!/bin/sh\r\nexit 7\r\n").unwrap();
        assert_eq!(std::process::Command::new(path).status().unwrap().code(), Some(7));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        write(&file, "").unwrap();
        let error = format!("{:#}", write(&file.join("below/text"), "").unwrap_err());
        assert!(error.contains("file/below"), "{error}");
    }
}
