//! Checks that arrays fit in free memory before they are allocated.
//!
//! A failed allocation comes too late: Linux overcommits, and kills the process that uses memory
//! that does not exist.

use std::path::Path;

use candle_core::{DType, Device};
use cpu_kernels::saturating_product;

use crate::error::{Error, Result};

/// Below this size the check is skipped: reading /proc costs more.
const SMALL: usize = 1 << 26;

/// Checks that an array on the CPU fits in memory; a GPU reports an error by itself.
///
/// # Errors
/// [`Error::Memory`] if it does not fit.
pub fn check(what: &'static str, shape: &[usize], dtype: DType, on: &Device) -> Result<()> {
    let bytes = [shape, &[dtype.size_in_bytes()]].concat();
    if on.is_cpu() { check_bytes(what, saturating_product(&bytes)) } else { Ok(()) }
}

/// Checks that this many bytes fit in memory.
///
/// # Errors
/// [`Error::Memory`] if they do not fit.
pub(crate) fn check_bytes(what: &'static str, bytes: usize) -> Result<()> {
    if bytes < SMALL { Ok(()) } else { check_against(available(), what, bytes) }
}

fn check_against(free: usize, what: &'static str, bytes: usize) -> Result<()> {
    if bytes <= free { Ok(()) } else { Err(Error::Memory { what, needed: bytes, free }) }
}

/// Available memory in bytes; `isize::MAX` where unknown, as on systems other than Linux.
fn available() -> usize {
    available_on(Path::new("/")).unwrap_or(isize::MAX as usize)
}

/// The available memory of a Linux machine, swap included, or what its container may still use if
/// that is less.
fn available_on(root: &Path) -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let meminfo = read(Path::new("proc/meminfo"));
    let swap = entry(&meminfo, "SwapFree:").unwrap_or(0);
    let mut available = entry(&meminfo, "MemAvailable:").map(|kib| (kib + swap) << 10);
    // Each line is `number:controllers:path`; cgroup v2 has no controllers.
    for line in read(Path::new("proc/self/cgroup")).lines() {
        let controllers_and_path = line.split_once(':').and_then(|(_, rest)| rest.split_once(":/"));
        let Some((controllers, path)) = controllers_and_path else {
            continue;
        };
        let (mount, limit_file, in_use) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max", "anon"),
            "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"),
            _ => continue,
        };
        // A group's limit also holds for the groups below it. Inside a container only the root
        // may be visible, and the path may not exist.
        for ancestor in Path::new(path).ancestors() {
            let group = Path::new(mount).join(ancestor);
            let limit = read(&group.join(limit_file)).trim().parse::<usize>().ok();
            let used = entry(&read(&group.join("memory.stat")), in_use);
            if let (Some(limit), Some(used)) = (limit, used) {
                let left = limit.saturating_sub(used);
                available = Some(available.map_or(left, |known| known.min(left)));
            }
        }
    }
    available
}

/// The number that follows a name in a table.
fn entry(table: &str, name: &str) -> Option<usize> {
    let row = table.lines().find(|row| row.split_whitespace().next() == Some(name))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_larger_than_the_available_memory_are_refused() {
        assert!(check_against(1000, "a test", 1000).is_ok());
        let error = check_against(1_000_000_000, "a test", 3_560_000_000).unwrap_err();
        let message = "a test needs 3.6 GB of memory, but only 1.0 GB is free: make it smaller, or \
                       free memory";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn the_available_memory_of_this_machine_is_plausible() {
        let available = available();
        assert!((1 << 20..1 << 60).contains(&available), "{available}");
        assert!(check_bytes("a test", SMALL - 1).is_ok());
        assert!(matches!(check_bytes("a test", usize::MAX), Err(Error::Memory { .. })));
    }

    #[test]
    fn the_tightest_limit_of_machine_and_containers_counts() {
        let root = tempfile::tempdir().unwrap();
        let available = || available_on(root.path());
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        assert_eq!(available(), None);
        write("proc/meminfo", "MemTotal:       9 kB\nMemAvailable:   8 kB\n");
        assert_eq!(available(), Some(8192));
        write("proc/meminfo", "MemAvailable:   8 kB\nSwapTotal:    9 kB\nSwapFree:    2 kB\n");
        assert_eq!(available(), Some(10240));
        write("proc/self/cgroup", "4:memory:/a\n3:cpu:/\n0::/b/c\n");
        write("sys/fs/cgroup/b/c/memory.max", "max\n");
        write("sys/fs/cgroup/b/c/memory.stat", "anon 10\n");
        assert_eq!(available(), Some(10240));
        write("sys/fs/cgroup/b/memory.max", "5000\n");
        write("sys/fs/cgroup/b/memory.stat", "file 4000\nanon 1000\n");
        assert_eq!(available(), Some(4000));
        // As inside a container: the path is the host's, the files are the container's.
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n");
        write("sys/fs/cgroup/memory/memory.stat", "total_rss 3001\n");
        assert_eq!(available(), Some(0));
    }

    #[test]
    fn overflowing_shapes_are_refused() {
        let check = |shape: &[usize]| check("a test", shape, DType::F32, &Device::Cpu);
        assert!(check(&[1 << 62, 4]).is_err()); // 2⁶⁴ would wrap to 0
        assert!(check(&[usize::MAX, 2, 0]).is_ok());
        assert!(check(&[]).is_ok());
    }
}
