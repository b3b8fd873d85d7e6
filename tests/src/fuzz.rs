//! Everything that parses bytes from outside, as functions of bytes alone: for the fuzzer in
//! `fuzz/`, and for the short run of it among the tests.
//!
//! They return when the bytes were taken or refused; anything else is a fault.

use std::collections::BTreeMap;

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::images::ImageError;
use mnist_notebook_support::{DataError, get_datasets_from};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use xtask::check::failures;
use xtask::notebook::Notebook;
use xtask::tidy::untidy;

/// A checkpoint, as it is and with the right sum: what is taken holds what it is saved as again.
pub fn checkpoint(bytes: &[u8]) {
    as_is_and_with_its_sum(bytes, take_checkpoint);
}

fn take_checkpoint(bytes: &[u8]) {
    if let Ok(state) = TrainState::from_bytes(bytes, &Device::Cpu) {
        let saved = state.to_bytes().expect("the parameters are in memory");
        let again = TrainState::from_bytes(&saved, &Device::Cpu).expect("it was just saved");
        assert_eq!((state.epoch, state.rng), (again.epoch, again.rng));
        assert_eq!(state.history.len(), again.history.len());
    }
}

/// Parameters in a safetensors file, as it is and with the right sum.
pub fn params(bytes: &[u8]) {
    as_is_and_with_its_sum(bytes, take_params);
}

fn take_params(bytes: &[u8]) {
    let file = file_of(bytes);
    if let Ok(params) = Params::load(file.path(), &Device::Cpu) {
        // Whatever was loaded can be looked at, and be another network's.
        let _ = format!("{params:?} {}", params.count());
        let image = Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu).expect("it is small");
        let _ = Cnn.apply(&params, &image);
        let _ = create_optimizer(&params, 0.1, 0.9);
    }
}

/// A file of MNIST, gzipped or not: the first byte decides.
pub fn idx(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let ending = if kind % 2 == 0 { "" } else { ".gz" };
    let dir = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = dir.path().join(format!("t10k-labels-idx1-ubyte{ending}"));
    std::fs::write(path, content).expect("temporary files can be written");
    match get_datasets_from(dir.path(), &Device::Cpu) {
        // The other files are missing, which is found only if this one is good.
        Err(error) => assert!(error.downcast_ref::<DataError>().is_some(), "{error:?}"),
        Ok(_) => panic!("one file of four was enough"),
    }
}

/// A picture in a PNG file: what is taken has a digit in it or not.
pub fn picture(bytes: &[u8]) {
    let file = file_of(bytes);
    if let Ok(picture) = read_png(file.path(), &Device::Cpu) {
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

/// Tries the bytes, and the same with the right sum: otherwise nearly every change would end there.
fn as_is_and_with_its_sum(bytes: &[u8], target: fn(&[u8])) {
    target(bytes);
    if let Some(bytes) = with_its_sum(bytes) {
        target(&bytes);
    }
}

/// A safetensors file with the SHA-256 sum in its header that this crate's files have: of the length
/// (eight bytes, the lowest first) and the content of each piece of text, then of each tensor.
fn with_its_sum(bytes: &[u8]) -> Option<Vec<u8>> {
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
    let file = tempfile::NamedTempFile::new().expect("there is a folder for temporary files");
    std::fs::write(file.path(), bytes).expect("temporary files can be written");
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_taken_with_its_sum() {
        let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let file = file_of(b"");
        Params::try_from(vec![("a".into(), zeros)]).unwrap().save(file.path()).unwrap();
        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let load = |bytes: &[u8]| Params::load(file_of(bytes).path(), &Device::Cpu);
        assert!(load(&bytes).is_err());
        assert!(load(&with_its_sum(&bytes).unwrap()).is_ok());
    }
}
