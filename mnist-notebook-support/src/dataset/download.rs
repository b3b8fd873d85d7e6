//! Downloads the files of a dataset from public mirrors to the user's cache folder.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;
use linen::{Cause, Error, Result, files};
use notebook_display::println;
use ureq::Agent;
use ureq::http::Response;

use crate::dataset::files::{DatasetFiles, IdxFile};
use crate::error::DataError;

#[derive(Clone, Copy)]
struct Timeouts {
    /// For name resolution, and again for connecting.
    connect: Duration,
    /// For each read.
    read: Duration,
    /// For a whole file.
    file: Duration,
}

impl Timeouts {
    const DEFAULT: Self = Self {
        connect: Duration::from_secs(10),
        read: Duration::from_secs(20),
        file: Duration::from_secs(300),
    };
}

/// The user's cache folder for a dataset, after downloading the missing files.
///
/// # Errors
/// [`DataError::Download`] if no mirror delivers a good file; [`Error::Save`] if saving fails.
pub(super) fn cached_files(dataset: &DatasetFiles) -> Result<PathBuf> {
    let strategy =
        etcetera::base_strategy::choose_native_strategy().map_err(|error| {
            Error::Save {
                path: "the user's cache folder".into(),
                source: std::io::Error::other(error),
            }
        })?;
    let dir = strategy.cache_dir().join("mnist-notebook-support").join(dataset.cache);
    fetch_missing(dataset, &dir, &dataset.mirrors, Timeouts::DEFAULT)?;
    Ok(dir)
}

/// Downloads each file missing from a folder from the first mirror that delivers a good copy.
///
/// Files are verified, then written atomically, so several processes may download to the same
/// folder at once.
fn fetch_missing(
    dataset: &DatasetFiles,
    dir: &Path,
    mirrors: &[&str],
    timeouts: Timeouts,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::save(dir))?;
    for file in &dataset.files {
        let path = dir.join(file.gz_name());
        if !path.exists() && !dir.join(file.name).exists() {
            let content = fetch(file, mirrors, timeouts).map_err(|attempts| {
                DataError::Download {
                    file: file.gz_name(),
                    attempts,
                    variable: dataset.variable,
                }
            })?;
            files::write(&path, &content)?;
        }
    }
    Ok(())
}

/// The verified gzipped file, or each mirror's URL with its error.
fn fetch(
    file: &IdxFile,
    mirrors: &[&str],
    timeouts: Timeouts,
) -> Result<Vec<u8>, String> {
    let mut attempts = Vec::new();
    for mirror in mirrors {
        match fetch_from(mirror, file, timeouts) {
            Ok(content) => return Ok(content),
            Err(problem) => attempts.push(format!("{mirror}: {problem}")),
        }
    }
    Err(attempts.join("; "))
}

/// The verified gzipped file from one mirror.
fn fetch_from(
    mirror: &str,
    file: &IdxFile,
    timeouts: Timeouts,
) -> Result<Vec<u8>, Cause> {
    let name = file.gz_name();
    println!("▕ downloading {name} from {mirror}");
    let agent: Agent = Agent::config_builder()
        // A redirect must not downgrade to plain HTTP.
        .https_only(mirror.starts_with("https:"))
        .max_redirects(5)
        .timeout_resolve(Some(timeouts.connect))
        .timeout_connect(Some(timeouts.connect))
        .timeout_per_read(Some(timeouts.read))
        .timeout_global(Some(timeouts.file))
        .build()
        .into();
    let response = agent.get(format!("{mirror}/{name}")).call()?;
    // The files are smaller gzipped than uncompressed.
    let content = read_body(response, file.size)?;
    file.verified(content.as_slice())?;
    Ok(content)
}

/// Reads a response of at most `limit` bytes; prints the progress every few seconds.
fn read_body(
    mut response: Response<ureq::Body>,
    limit: u64,
) -> std::io::Result<Vec<u8>> {
    const INTERVAL: Duration = Duration::from_secs(5);
    let total = response.body().content_length();
    let mut reader = response.body_mut().with_config().limit(limit).reader();
    let mut content = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut next_report = Instant::now() + INTERVAL;
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(content),
            len => content.extend_from_slice(&buffer[..len]),
        }
        if Instant::now() >= next_report {
            let of_total = total
                .map_or(String::new(), |total| format!(" of {}", megabytes(total)));
            println!("▕ {}{of_total} MB", megabytes(content.len() as u64));
            next_report += INTERVAL;
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests;
