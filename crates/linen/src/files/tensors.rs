//! Safetensors files with a SHA-256 sum in the header, which detects every flipped bit.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{TensorView, View};
use safetensors::{SafeTensorError, SafeTensors};
use sha2::{Digest, Sha256};

use crate::error::{Cause, Error, Result};

/// The header key of the sum.
const SUM: &str = "sha256";

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system does not read it.
    #[error("it cannot be read ({0})")]
    Unreadable(#[from] std::io::Error),

    /// It is not in the safetensors format.
    #[error("it is damaged or no safetensors file ({0})")]
    NotSafetensors(#[from] SafeTensorError),

    /// Its SHA-256 sum is wrong.
    #[error("it is damaged (its content does not match its SHA-256 sum)")]
    Damaged,
}

/// Serializes header entries and tensors, from any device, and adds the sum.
pub fn to_bytes(
    mut header: BTreeMap<String, String>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Vec<u8>> {
    let on_cpu = tensors.iter().map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)));
    let tensors = on_cpu.collect::<Result<BTreeMap<_, _>>>()?;
    header.insert(SUM.into(), digest(&header, &tensors));
    safetensors::serialize(tensors, Some(header.into_iter().collect()))
        .map_err(|error| Error::Tensor(error.to_string()))
}

/// Reads a file, checks its sum and converts it with `parse`. A file without a sum, as Flax writes
/// it, is not checked.
///
/// # Errors
/// [`Error::Load`] if the file cannot be read, is not a safetensors file or is damaged, or if
/// `parse` fails.
pub fn load<T>(path: &Path, parse: impl FnOnce(&TensorFile) -> Result<T, Cause>) -> Result<T> {
    let read = || -> Result<T, Cause> {
        let bytes = std::fs::read(path).map_err(FileError::from)?;
        let file = TensorFile::parse(&bytes)?;
        if file.is_intact() == Some(false) {
            return Err(FileError::Damaged.into());
        }
        parse(&file)
    };
    read().map_err(|source| Error::Load { path: path.to_owned(), source })
}

/// A parsed safetensors file.
pub struct TensorFile<'a> {
    /// The header entries, without the sum.
    pub header: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorView<'a>>,
    sum: Option<String>,
}

impl<'a> TensorFile<'a> {
    /// Parses the content of a file; the error says what is wrong with it.
    ///
    /// Paths have slashes. If a file of another program has none, its dots become slashes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FileError> {
        let file = SafeTensors::deserialize(bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let header = metadata.metadata().clone().unwrap_or_default();
        let mut header = header.into_iter().collect::<BTreeMap<_, _>>();
        let sum = header.remove(SUM);
        let is_dotted = sum.is_none() && file.iter().all(|(name, _)| !name.contains('/'));
        let path = |name: &str| if is_dotted { name.replace('.', "/") } else { name.to_owned() };
        let tensors = file.iter().map(|(name, view)| (path(name), view)).collect();
        Ok(TensorFile { header, tensors, sum })
    }

    /// Whether the sum is right; `None` if the file has none, as when other programs wrote it.
    pub fn is_intact(&self) -> Option<bool> {
        self.sum.as_ref().map(|sum| *sum == digest(&self.header, &self.tensors))
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors whose names begin with `prefix`, on `device`, with the prefix removed.
    ///
    /// # Errors
    /// [`Error::Tensor`] for an element type that candle does not support.
    pub fn tensors(&self, prefix: &str, device: &Device) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (name, view) in &self.tensors {
            if let Some(path) = name.strip_prefix(prefix) {
                tensors.push((path.to_owned(), view.load(device)?));
            }
        }
        Ok(tensors)
    }
}

/// The SHA-256 sum of header and tensors, in hexadecimal.
///
/// Each piece is preceded by its length, so that different files cannot hash the same bytes.
fn digest<N: AsRef<str>, V: View>(
    header: &BTreeMap<String, String>,
    tensors: &BTreeMap<N, V>,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |piece: &[u8]| {
        hash.update((piece.len() as u64).to_le_bytes());
        hash.update(piece);
    };
    for (name, value) in header {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    for (name, tensor) in tensors {
        add(name.as_ref().as_bytes());
        add(format!("{:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        add(&tensor.data());
    }
    hash.finalize().iter().fold(String::new(), |mut digits, byte| {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
