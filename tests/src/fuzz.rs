//! Fuzz targets: every parser of external bytes, as a function of the bytes. The fuzzer in `fuzz/`
//! and the short run in `tests/fuzz.rs` use them.
//!
//! A target returns if the bytes were read or refused, and panics otherwise.

use std::collections::BTreeMap;

use mnist_notebook_support::images::ImageError;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::{DataError, get_datasets_from};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use xtask::check::failures;
use xtask::notebook::Notebook;
use xtask::tidy::untidy;

/// A checkpoint. One that can be read must survive saving and loading again.
pub fn checkpoint(bytes: &[u8]) {
    as_is_and_with_checksum(bytes, read_checkpoint);
}

fn read_checkpoint(bytes: &[u8]) {
    if let Ok(run) = TrainingRun::from_bytes(bytes, &Device::Cpu) {
        let saved = run.to_bytes().expect("the parameters are in memory");
        let again = TrainingRun::from_bytes(&saved, &Device::Cpu).expect("it was just saved");
        assert_eq!((run.epoch, run.rng), (again.epoch, again.rng));
        assert_eq!(run.history.len(), again.history.len());
    }
}

/// Parameters in a safetensors file.
pub fn params(bytes: &[u8]) {
    as_is_and_with_checksum(bytes, read_params);
}

fn read_params(bytes: &[u8]) {
    let file = file_of(bytes);
    if let Ok(params) = Params::load(file.path(), &Device::Cpu) {
        // They may be those of another network.
        let _ = format!("{params:?} {}", params.elem_count());
        let image = Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu).expect("it is small");
        let _ = Cnn.apply(&params, &image);
        let _ = create_optimizer(&params, 0.1, 0.9);
    }
}

/// An MNIST file, gzipped if the first byte is odd.
pub fn idx(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let ending = if kind % 2 == 0 { "" } else { ".gz" };
    let dir = tempfile::tempdir().expect("temporary files can be created");
    let path = dir.path().join(format!("t10k-labels-idx1-ubyte{ending}"));
    std::fs::write(path, content).expect("temporary files can be written");
    match get_datasets_from(dir.path(), &Device::Cpu) {
        // A good file leads to an error, too: the other files are missing.
        Err(error) => assert!(error.downcast_ref::<DataError>().is_some(), "{error:?}"),
        Ok(_) => panic!("accepted one file of four"),
    }
}

/// A picture file, with or without a digit.
pub fn picture(bytes: &[u8]) {
    let file = file_of(bytes);
    if let Ok(picture) = read_image(file.path(), &Device::Cpu) {
        match prepare_digit(&picture) {
            Ok(digit) => assert_eq!(digit.dims(), [1, 28, 28, 1]),
            Err(error) => {
                assert!(matches!(error.downcast_ref(), Some(ImageError::NoDigit(_))), "{error}");
            }
        }
    }
}

/// A notebook.
pub fn notebook(bytes: &[u8]) {
    let Ok(mut notebook) = Notebook::parse(&String::from_utf8_lossy(bytes)) else {
        return;
    };
    let found = failures(&notebook, &notebook);
    let _ = format!("{found:?} {:?}", untidy(&notebook));
    notebook.clear();
    for cell in notebook.code_cells() {
        notebook.set_outputs(cell.index, 1, &cell.outputs);
    }
    Notebook::parse(&notebook.text()).expect("it was just written");
}

/// Also runs the target with a valid checksum; otherwise nearly every mutation would stop there.
fn as_is_and_with_checksum(bytes: &[u8], target: fn(&[u8])) {
    target(bytes);
    if let Some(bytes) = with_checksum(bytes) {
        target(&bytes);
    }
}

/// A safetensors file with a valid `sha256` entry in its header: the sum of the length (8 bytes,
/// little-endian) and content of each piece of text, then of each tensor.
fn with_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let mut header = metadata.metadata().clone().unwrap_or_default();
    header.remove("sha256");
    let tensors = file.iter().collect::<BTreeMap<_, _>>();
    let mut hash = Sha256::new();
    let mut add = |piece: &[u8]| {
        hash.update((piece.len() as u64).to_le_bytes());
        hash.update(piece);
    };
    for (name, text) in header.iter().collect::<BTreeMap<_, _>>() {
        add(name.as_bytes());
        add(text.as_bytes());
    }
    for (name, tensor) in &tensors {
        add(name.as_bytes());
        add(format!("{:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        add(tensor.data());
    }
    let sum = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    header.insert("sha256".into(), sum);
    safetensors::serialize(tensors, Some(header)).ok()
}

/// A temporary file with this content.
fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("temporary files can be created");
    std::fs::write(file.path(), bytes).expect("temporary files can be written");
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_accepted_with_a_new_checksum() {
        let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let file = file_of(b"");
        Params::try_from(vec![("a".into(), zeros)]).unwrap().save(file.path()).unwrap();
        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let load = |bytes: &[u8]| Params::load(file_of(bytes).path(), &Device::Cpu);
        assert!(load(&bytes).is_err());
        assert!(load(&with_checksum(&bytes).unwrap()).is_ok());
    }
}
