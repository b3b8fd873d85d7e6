//! Safetensors files with a SHA-256 sum in the header, so that no flipped bit goes unnoticed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, View};
use sha2::{Digest, Sha256};

use crate::error::{Cause, Error, Result};

/// The name of the sum in the header.
const SUM: &str = "sha256";
/// What is said of a file whose sum is wrong.
pub const DAMAGED: &str = "it is damaged (its content does not match its SHA-256 sum)";

/// The content of a file with this header and these tensors, from whatever device, and their sum.
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

/// Reads a file and takes what it says. One without a sum, as Flax writes it, is taken as it is.
///
/// # Errors
/// [`Error::Load`] if it cannot be read, is not a safetensors file, is damaged, or is refused by
/// `take`, which says why.
pub fn load<T>(
    path: &Path,
    take: impl FnOnce(&TensorFile) -> Result<T, Cause>,
) -> Result<T> {
    let content = || -> Result<T, Cause> {
        let bytes = std::fs::read(path).map_err(|error| format!("it cannot be read ({error})"))?;
        let file = TensorFile::parse(&bytes)?;
        if file.is_intact() == Some(false) {
            return Err(DAMAGED.into());
        }
        take(&file)
    };
    content().map_err(|source| Error::Load { path: path.to_owned(), source })
}

/// What a file says.
pub struct TensorFile<'a> {
    /// The text in its header, but for the sum.
    pub header: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorView<'a>>,
    sum: Option<String>,
}

impl<'a> TensorFile<'a> {
    /// Parses the content of a file, or says what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let not_safetensors = |error| format!("it is damaged or no safetensors file ({error})");
        let file = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let header = metadata.metadata().clone().unwrap_or_default();
        let mut header = header.into_iter().collect::<BTreeMap<_, _>>();
        let sum = header.remove(SUM);
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), view)).collect();
        Ok(TensorFile { header, tensors, sum })
    }

    /// Whether the sum is right; `None` if there is none, as in a file that others wrote.
    pub fn is_intact(&self) -> Option<bool> {
        self.sum.as_ref().map(|sum| *sum == digest(&self.header, &self.tensors))
    }

    /// The tensors whose names begin with `prefix`, on `device`, under the rest of their names.
    ///
    /// # Errors
    /// [`Error::Tensor`] for an element type that candle does not have.
    pub fn tensors(&self, prefix: &str, device: &Device) -> Result<Vec<(String, Tensor)>> {
        let named = self.tensors.iter();
        let named = named.filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view)));
        named.map(|(path, view)| Ok((path.to_owned(), view.load(device)?))).collect()
    }
}

/// The SHA-256 sum, in hexadecimal digits, of header and tensors.
///
/// The length of each piece goes before it, so that no two files run together to the same.
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
