//! Training that is killed, or cannot write, loses at most the current epoch.
//!
//! The environment variable `FAULTS` is the number of faults of each kind: 10 by default, 100 for
//! `cargo xtask faults --long`.

#![cfg(unix)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::bits;
use tempfile::TempDir;
use tests::newest_checkpoint;

const EPOCHS: usize = 5;
const SIGKILL: i32 = 9;

/// The number of faults of each kind.
fn faults() -> usize {
    std::env::var("FAULTS").map_or(10, |faults| faults.parse().expect("FAULTS is a number"))
}

/// Prints a line even if the test passes: the test harness captures only `println!`.
fn print_line(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").unwrap();
}

fn report(kind: &str, injected: usize, lost: &[String]) {
    let survived = injected - lost.len();
    let counts = format!("faults injected: {injected}, survived: {survived}, lost: {}", lost.len());
    print_line(&format!("{kind}: {counts}"));
    assert!(lost.is_empty(), "{kind}: {counts}\n{}", lost.join("\n"));
}

/// Reproducible random numbers from 0 to 1.
fn fractions(seed: i64) -> impl Iterator<Item = f64> {
    let numbers = bits(Key::new(seed), 10_000, &Device::Cpu).unwrap().to_vec1::<u32>().unwrap();
    numbers.into_iter().map(|bits| f64::from(bits) / 2f64.powi(32)).cycle()
}

fn trainer() -> &'static str {
    env!("CARGO_BIN_EXE_train_with_checkpoints")
}

fn start(folder: &Path, epochs: usize) -> Child {
    Command::new(trainer())
        .arg(folder)
        .arg(epochs.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Trains to the end, or returns the error message.
fn finish(folder: &Path) -> Result<(), String> {
    let output = start(folder, EPOCHS).wait_with_output().unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a checkpoint is being written.
fn is_being_written(folder: &Path) -> bool {
    names(folder).iter().any(|name| name.starts_with(".partial-"))
}

/// The final checkpoint of uninterrupted training, and its duration.
fn uninterrupted() -> (Vec<u8>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    finish(dir.path()).unwrap();
    (newest_checkpoint(dir.path()).unwrap(), start.elapsed())
}

/// A folder with the checkpoint of the first epoch, the path of that file, and its content.
fn one_epoch() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    assert!(start(dir.path(), 1).wait().unwrap().success());
    let path = dir.path().join("epoch-0001.safetensors");
    let content = std::fs::read(&path).unwrap();
    (dir, path, content)
}

#[test]
fn killed_training_resumes_and_ends_with_the_same_bits() {
    let (expected, duration) = uninterrupted();
    let (wanted, mut random) = (faults(), fractions(0));
    let (mut kills, mut kills_while_writing, mut lost) = (0, 0, Vec::new());
    for attempt in 0.. {
        assert!(attempt < 100 * wanted, "{kills} kills in {attempt} attempts");
        if kills == wanted {
            break;
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let mut child = start(folder, EPOCHS);
        // Kill at a random moment.
        std::thread::sleep(duration.mul_f64(random.next().unwrap()));
        let aim_at_writing = kills_while_writing < wanted / 2;
        if aim_at_writing {
            while !is_being_written(folder) && child.try_wait().unwrap().is_none() {}
            let pause = Duration::from_millis(2).mul_f64(random.next().unwrap());
            let start = Instant::now();
            while start.elapsed() < pause {}
        }
        child.kill().unwrap();
        let was_killed = child.wait().unwrap().signal() == Some(SIGKILL);
        let while_writing = is_being_written(folder);
        if !was_killed || aim_at_writing != while_writing {
            continue;
        }
        kills += 1;
        kills_while_writing += usize::from(while_writing);
        match finish(folder).and_then(|()| newest_checkpoint(folder)) {
            Ok(found) if found == expected && !is_being_written(folder) => {}
            Ok(_) => lost
                .push(format!("kill {kills}: different bits, or files left: {:?}", names(folder))),
            Err(error) => lost.push(format!("kill {kills}: {error}")),
        }
    }
    let kind = format!("SIGKILL, {kills_while_writing} of them while a checkpoint was written");
    report(&kind, kills, &lost);
}

/// The problem after a save that had to fail, if there is one.
fn problem_after(
    folder: &Path,
    path: &Path,
    content: &[u8],
    said: &str,
    reason: &str,
) -> Option<String> {
    if !said.contains("cannot write") || !said.contains(reason) || !said.contains("epoch-0002") {
        return Some(format!("the message is {said:?}"));
    }
    if names(folder) != ["epoch-0001.safetensors"] {
        return Some(format!("the folder holds {:?}", names(folder)));
    }
    (std::fs::read(path).unwrap() != content).then(|| "the old checkpoint has changed".into())
}

#[test]
fn a_write_error_leaves_the_old_checkpoint_and_says_why() {
    let (expected, _) = uninterrupted();
    let (dir, path, content) = one_epoch();
    let (injected, mut lost) = (faults(), Vec::new());
    for fraction in fractions(1).take(injected) {
        // A file size limit, in blocks of 512 bytes, makes writing fail partway.
        let blocks = (content.len() as f64 * fraction / 512.0) as usize;
        let output = Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; ulimit -f "$1"; exec "$2" "$3" "$4""#, "sh"])
            .args([&blocks.to_string(), trainer()])
            .arg(dir.path())
            .arg(EPOCHS.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        lost.extend(problem_after(dir.path(), &path, &content, &said, "File too large"));
    }
    finish(dir.path()).unwrap();
    assert_eq!(newest_checkpoint(dir.path()), Ok(expected));
    report("write errors", injected, &lost);
}

/// Runs a script as root of a mount namespace, with arguments `$1`, `$2`, …; `None` if the system
/// does not permit it.
fn in_mount_namespace(script: &str, arguments: &[&Path]) -> Option<String> {
    let unshare = |command: &mut Command| command.stderr(Stdio::piped()).output().ok();
    let prefix = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let probe = unshare(Command::new("unshare").args(prefix).arg("mount -t tmpfs none /tmp"))?;
    if !probe.status.success() {
        return None;
    }
    let output =
        unshare(Command::new("unshare").args(prefix).args([script, "sh"]).args(arguments))?;
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint_and_says_why() {
    let (dir, path, content) = one_epoch();
    // Room for one and a half checkpoints. The files are copied back for inspection.
    let size = content.len() * 3 / 2;
    let script = format!(
        r#"mkdir "$1/disk" && mount -t tmpfs -o size={size} none "$1/disk" && cp -p "$2" "$1/disk"
        "$3" "$1/disk" 5 >&2
        mkdir "$1/after" && cp -a "$1/disk/." "$1/after""#
    );
    let folder = dir.path().join("after");
    match in_mount_namespace(&script, &[dir.path(), &path, Path::new(trainer())]) {
        Some(said) => {
            let after = folder.join("epoch-0001.safetensors");
            let lost = problem_after(&folder, &after, &content, &said, "No space left on device");
            report("disk full", 1, &Vec::from_iter(lost));
        }
        None => print_line("disk full: no mount is permitted here"),
    }
}

#[test]
fn a_read_only_folder_leaves_the_old_checkpoint_and_says_why() {
    let (dir, path, content) = one_epoch();
    let writable = std::fs::metadata(dir.path()).unwrap().permissions();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let is_root = std::fs::write(dir.path().join("probe"), "").is_ok();
    let outcome = if is_root {
        // Root ignores permissions, but not a read-only mount.
        std::fs::remove_file(dir.path().join("probe")).unwrap();
        let script = r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && "$2" "$1" 5"#;
        in_mount_namespace(script, &[dir.path(), Path::new(trainer())])
            .map(|said| (said, "Read-only file system"))
    } else {
        let output = start(dir.path(), EPOCHS).wait_with_output().unwrap();
        Some((String::from_utf8_lossy(&output.stderr).into_owned(), "Permission denied"))
    };
    std::fs::set_permissions(dir.path(), writable).unwrap();
    match outcome {
        Some((said, reason)) => {
            let lost = problem_after(dir.path(), &path, &content, &said, reason);
            report("read-only folder", 1, &Vec::from_iter(lost));
        }
        None => print_line("read-only folder: no mount is permitted here"),
    }
}
