//! A cache of machine code, and of choices of tiles, on disk. Compiling the kernels takes half a
//! minute, and without the cache every notebook cell, being a separate library, would repeat it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
#[cfg(feature = "cuda")]
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::files;

/// The folder where NVIDIA's driver caches compiled kernels.
#[cfg(feature = "cuda")]
pub(crate) fn compute_cache() -> Option<PathBuf> {
    let named = std::env::var_os("CUDA_CACHE_PATH").filter(|path| !path.is_empty());
    let named = named.map(PathBuf::from);
    named.or_else(|| Some(std::env::home_dir()?.join(".nv/ComputeCache")))
}

/// The machine code of a source for a target: read from the cache folder, or else compiled and
/// cached. Files begin with a SHA-256 sum.
///
/// # Errors
/// Those of `compile`. A damaged file is replaced, and what cannot be written is kept in memory. If
/// several processes or threads compile the same at once, all get what the first has written: tiles
/// that are measured again might be others, and change results.
pub(crate) fn cached(
    folder: Option<&Path>,
    (source, target): (&str, &str),
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    // Where nothing can be written, for as long as the process lives.
    static KEPT: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);

    let [a, b, c, d, ..] = sum(source.as_bytes());
    let version = u32::from_be_bytes([a, b, c, d]);
    let name = format!("mnist-notebook-support-{version:08x}-{target}");
    let file = folder.map(|folder| folder.join(&name));
    let in_file = || intact(fs::read(file.as_ref()?).ok()?);
    if let Some(code) = in_file().or_else(|| kept().get(&name).cloned()) {
        return Ok(code);
    }
    let code = compile()?;
    let content = [&sum(&code), &*code].concat();
    let write = |write: fn(&Path, &[u8]) -> Result<()>| {
        fs::create_dir_all(folder?).ok()?;
        write(file.as_ref()?, &content).ok()
    };
    write(files::write_first);
    if let Some(code) = in_file() {
        return Ok(code);
    }
    // A damaged file, or none.
    match write(files::write) {
        Some(()) => Ok(code),
        None => Ok(kept().entry(name).or_insert(code).clone()),
    }
}

/// The code in a file, if its sum is right.
fn intact(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (expected, code) = bytes.split_first_chunk()?;
    (sum(code) == *expected).then(|| code.to_vec())
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    type Compile = fn() -> Result<Vec<u8>>;

    const KERNEL: (&str, &str) = ("__global__ void run() {}", "sm_90");

    fn never() -> Result<Vec<u8>> {
        panic!("compiled again")
    }

    #[test]
    fn a_source_is_compiled_once_for_each_target() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("not there yet");
        let code = |kernel, compile: Compile| cached(Some(&folder), kernel, compile).unwrap();
        assert_eq!(code(KERNEL, || Ok(vec![1, 2])), [1, 2]);
        assert_eq!(code(KERNEL, never), [1, 2]);
        assert_eq!(code((KERNEL.0, "sm_80"), || Ok(vec![3])), [3]);
        assert_eq!(code(("another source", KERNEL.1), || Ok(vec![4])), [4]);
        assert_eq!(code(KERNEL, never), [1, 2]);
    }

    #[test]
    fn damaged_code_is_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        let code = |compile: Compile| cached(Some(dir.path()), KERNEL, compile).unwrap();
        code(|| Ok(vec![7; 9]));
        let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let good = fs::read(&file).unwrap();
        for damage in [&good[..good.len() - 1], &good[..5], &[&[1], &good[1..]].concat()] {
            fs::write(&file, damage).unwrap();
            assert_eq!(code(|| Ok(vec![7; 9])), [7; 9]);
            assert_eq!(fs::read(&file).unwrap(), good);
        }
    }

    #[test]
    fn all_get_what_the_first_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = ("compiled twice at once", "sm_90");
        for folder in [Some(dir.path()), None] {
            // Another process is faster.
            let code = cached(folder, kernel, || {
                cached(folder, kernel, || Ok(vec![1]))?;
                Ok(vec![2])
            });
            assert_eq!(code.unwrap(), [1]);
            assert_eq!(cached(folder, kernel, never).unwrap(), [1]);
        }
    }

    #[test]
    fn what_cannot_be_written_is_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let a_file = dir.path().join("a file");
        fs::write(&a_file, "").unwrap();
        for (source, folder) in [("one", None), ("another", Some(a_file.as_path()))] {
            let code = |compile: Compile| cached(folder, (source, "sm_90"), compile).unwrap();
            assert_eq!(code(|| Ok(vec![1])), [1]);
            assert_eq!(code(never), [1]);
        }
    }

    #[test]
    fn a_failure_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = ("a failure", "sm_90");
        for folder in [None, Some(dir.path())] {
            let failure = || Err(Error::Gpu("no".into()));
            assert!(cached(folder, kernel, failure).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(cached(Some(dir.path()), kernel, || Ok(vec![1])).unwrap(), [1]);
    }
}
