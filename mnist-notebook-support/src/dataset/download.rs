//! Fetches the files of a dataset from public mirrors into the user's cache folder.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;
use flate2::read::GzDecoder;
use linen::{Cause, Error, Result, files};
use ureq::Agent;
use ureq::http::Response;

use crate::dataset::files::{FASHION_MNIST, IdxFile, MNIST, Published};
use crate::error::DataError;

/// Folders of the gzipped files of Fashion-MNIST.
const FASHION_MIRRORS: [&str; 2] = [
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
];

/// Folders of the gzipped files of MNIST.
const PUBLIC_MIRRORS: [&str; 2] = [
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
];

/// How long a mirror may take.
#[derive(Clone, Copy)]
struct Patience {
    /// For its name to be found, and again to connect.
    connect: Duration,
    /// Between two pieces of an answer.
    silence: Duration,
    /// For a whole file.
    file: Duration,
}

impl Patience {
    const USUAL: Self = Self {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(20),
        file: Duration::from_secs(300),
    };
}

/// The folder of the user's cache that holds the four files, after fetching those it lacks.
///
/// # Errors
/// [`DataError::Download`] if no mirror hands out a good file; [`Error::Save`] if it cannot be kept.
pub(super) fn cached_files() -> Result<PathBuf> {
    let dir = cache_folder()?;
    fetch_missing(&MNIST, &dir, &PUBLIC_MIRRORS, Patience::USUAL)?;
    Ok(dir)
}

/// [`cached_files`] of Fashion-MNIST.
pub(super) fn cached_fashion_files() -> Result<PathBuf> {
    let dir = cache_folder()?.join("fashion-mnist");
    fetch_missing(&FASHION_MNIST, &dir, &FASHION_MIRRORS, Patience::USUAL)?;
    Ok(dir)
}

fn cache_folder() -> Result<PathBuf> {
    let strategy = etcetera::base_strategy::choose_native_strategy().map_err(|error| {
        Error::Save { path: "the user's cache folder".into(), source: std::io::Error::other(error) }
    })?;
    Ok(strategy.cache_dir().join("mnist-notebook-support"))
}

/// Fetches the files that a folder lacks, each from the first mirror that hands out a good one.
///
/// A file appears under its name whole and verified, or not at all; others may fetch into the
/// same folder at the same time.
fn fetch_missing(
    published: &Published,
    dir: &Path,
    mirrors: &[&str],
    patience: Patience,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::save(dir))?;
    for file in &published.files {
        let path = dir.join(file.gz_name());
        if !path.exists() && !dir.join(file.name).exists() {
            let content = fetch(file, mirrors, patience).map_err(|attempts| DataError::Download {
                file: file.gz_name(),
                attempts,
                variable: published.variable,
            })?;
            files::write(&path, &content)?;
        }
    }
    Ok(())
}

/// The verified content of a gzipped file, or each mirror and what went wrong there.
fn fetch(file: &IdxFile, mirrors: &[&str], patience: Patience) -> Result<Vec<u8>, String> {
    let mut attempts = Vec::new();
    for mirror in mirrors {
        match fetch_from(mirror, file, patience) {
            Ok(content) => return Ok(content),
            Err(problem) => attempts.push(format!("{mirror}: {problem}")),
        }
    }
    Err(attempts.join("; "))
}

/// The verified content of a gzipped file on one mirror, or what went wrong.
fn fetch_from(mirror: &str, file: &IdxFile, patience: Patience) -> Result<Vec<u8>, Cause> {
    let name = file.gz_name();
    println!("▕ fetching {name} from {mirror}");
    let agent: Agent = Agent::config_builder()
        // A redirection must not leave encryption behind.
        .https_only(mirror.starts_with("https:"))
        .max_redirects(5)
        .timeout_resolve(Some(patience.connect))
        .timeout_connect(Some(patience.connect))
        .timeout_per_read(Some(patience.silence))
        .timeout_global(Some(patience.file))
        .build()
        .into();
    let response = agent.get(format!("{mirror}/{name}")).call()?;
    // No file is larger gzipped than it is unpacked.
    let content = read_body(response, file.size)?;
    file.verified(GzDecoder::new(content.as_slice()))?;
    Ok(content)
}

/// Reads an answer of at most so many bytes, with a line from time to time.
fn read_body(mut response: Response<ureq::Body>, limit: u64) -> std::io::Result<Vec<u8>> {
    const INTERVAL: Duration = Duration::from_secs(5);
    let total = response.body().content_length();
    let mut reader = response.body_mut().with_config().limit(limit).reader();
    let mut content = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    let mut due = Instant::now() + INTERVAL;
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(content),
            len => content.extend_from_slice(&piece[..len]),
        }
        if Instant::now() >= due {
            let of_total = total.map_or(String::new(), |total| format!(" of {}", megabytes(total)));
            println!("▕ {}{of_total} MB", megabytes(content.len() as u64));
            due += INTERVAL;
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests;
