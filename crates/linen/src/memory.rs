//! What does not fit the free memory is refused before it is tried.
//!
//! Trying would tell too late: Linux grants memory that it does not have, and ends the process that
//! uses it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// Bytes that are not worth a look at what is free, which takes some files to be read.
const SMALL: usize = 1 << 26;

/// Refuses an array that does not fit the memory.
///
/// A GPU says by itself that its memory is full: on others than the CPU nothing is refused.
pub fn check(what: &'static str, shape: &[usize], dtype: DType, on: &Device) -> Result<()> {
    let bytes = [shape, &[dtype.size_in_bytes()]].concat();
    if on.is_cpu() { check_bytes(what, product(&bytes)) } else { Ok(()) }
}

/// Refuses so many bytes that they do not fit the memory.
pub fn check_bytes(what: &'static str, bytes: usize) -> Result<()> {
    if bytes < SMALL { Ok(()) } else { check_against(free(), what, bytes) }
}

fn check_against(free: usize, what: &'static str, bytes: usize) -> Result<()> {
    if bytes <= free { Ok(()) } else { Err(Error::Memory { what, needed: bytes, free }) }
}

/// The product of the extents, or the largest number if it is larger.
pub fn product(extents: &[usize]) -> usize {
    extents.iter().fold(1, |a, b| a.saturating_mul(*b))
}

/// Bytes that can be had without taking them from another process; where nobody says, as on other
/// systems than Linux, as many as there can be at all.
fn free() -> usize {
    free_below(Path::new("/")).unwrap_or(isize::MAX as usize)
}

/// What the files of a Linux system say: of the machine, or of a container if it has less.
fn free_below(root: &Path) -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let of_machine = entry(&read("proc/meminfo"), "MemAvailable:").map(|kib| kib << 10);
    let groups = read("proc/self/cgroup");
    // `number:controllers:path`; without controllers in the second version of control groups.
    let of_groups = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(":/")?;
        let (mount, limit, in_use) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max", "anon"),
            "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"),
            _ => return None,
        };
        // A limit holds for all groups below; a container may see no more than its own.
        let groups = Path::new(path).ancestors().map(|group| Path::new(mount).join(group));
        let of_group = |group: PathBuf| {
            let read = |file: &str| read(&group.join(file).to_string_lossy());
            let limit: usize = read(limit).trim().parse().ok()?;
            Some(limit.saturating_sub(entry(&read("memory.stat"), in_use)?))
        };
        groups.filter_map(of_group).min()
    });
    of_machine.into_iter().chain(of_groups).min()
}

/// The number after a name, in a table of names and numbers.
fn entry(table: &str, name: &str) -> Option<usize> {
    let mut rows = table.lines().map(str::split_whitespace);
    rows.find_map(|mut row| if row.next() == Some(name) { row.next()?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_taken_and_what_does_not_is_refused() {
        assert!(check_against(1000, "a test", 1000).is_ok());
        let error = check_against(1_000_000_000, "a test", 3_560_000_000).unwrap_err();
        let message = "a test needs 3.6 GB of memory, and 1.0 GB are free: make it smaller, or free \
                       memory";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn this_machine_has_memory_but_not_without_end() {
        // What these tests hold at least, and what no machine has.
        assert!((1 << 20..1 << 60).contains(&free()), "{}", free());
        assert!(check_bytes("a test", SMALL - 1).is_ok());
        assert!(matches!(check_bytes("a test", usize::MAX), Err(Error::Memory { .. })));
    }

    #[test]
    fn the_tightest_limit_of_the_machine_and_its_containers_counts() {
        let root = tempfile::tempdir().unwrap();
        let free = || free_below(root.path());
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        assert_eq!(free(), None);
        write("proc/meminfo", "MemTotal:       9 kB\nMemAvailable:   8 kB\n");
        assert_eq!(free(), Some(8192));
        write("proc/self/cgroup", "4:memory:/a\n3:cpu:/\n0::/b/c\n");
        write("sys/fs/cgroup/b/c/memory.max", "max\n");
        write("sys/fs/cgroup/b/c/memory.stat", "anon 10\n");
        assert_eq!(free(), Some(8192));
        write("sys/fs/cgroup/b/memory.max", "5000\n");
        write("sys/fs/cgroup/b/memory.stat", "file 4000\nanon 1000\n");
        assert_eq!(free(), Some(4000));
        // As a container sees it: the path is the machine's, the files are its own.
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n");
        write("sys/fs/cgroup/memory/memory.stat", "total_rss 3001\n");
        assert_eq!(free(), Some(0));
    }

    #[test]
    fn extents_that_no_number_can_count_are_refused() {
        let check = |shape: &[usize]| check("a test", shape, DType::F32, &Device::Cpu);
        assert!(check(&[1 << 62, 4]).is_err()); // 2⁶⁴, and 0 where only 64 bits count
        assert!(check(&[usize::MAX, 2, 0]).is_ok());
        assert!(check(&[]).is_ok());
    }
}
