//! Keeps tensor ids, by which autograd tells tensors apart, unique across notebook cells.

use std::hash::{Hash, Hasher};

use candle_core::{Device, Tensor};

/// Makes sure that no new tensor gets the id of one of these.
///
/// candle numbers tensors in order of creation, and autograd goes by these ids. But where each
/// notebook cell has its own copy of candle, as under a kernel not set up by this project, each
/// counts from 1 again. So a new tensor could get the id, and then the gradient, of a parameter
/// from an earlier cell.
pub(crate) fn ensure_fresh_ids<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) {
    skip_ids_to(tensors.into_iter().map(tensor_id).max().unwrap_or(0));
}

/// Uses up all ids up to `last`.
fn skip_ids_to(last: u64) {
    while Tensor::new(0u8, &Device::Cpu).is_ok_and(|tensor| tensor_id(&tensor) < last) {}
}

/// The id of a tensor, which candle exposes only through `Hash`.
fn tensor_id(tensor: &Tensor) -> u64 {
    struct IdHasher(u64);
    impl Hasher for IdHasher {
        fn write(&mut self, _: &[u8]) {}
        fn write_usize(&mut self, id: usize) {
            self.0 = id as u64;
        }
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let mut hasher = IdHasher(0);
    tensor.id().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_id() -> u64 {
        tensor_id(&Tensor::new(0u8, &Device::Cpu).unwrap())
    }

    #[test]
    fn ids_ascend_in_order_of_creation() {
        let first = new_id();
        assert!(first > 0 && new_id() > first);
    }

    #[test]
    fn new_ids_come_after_the_skipped_ones() {
        let last = new_id() + 1000;
        skip_ids_to(last);
        assert!(new_id() > last);
        // Skipping again does nothing.
        let before = new_id();
        skip_ids_to(last);
        assert!(new_id() > before);
    }
}
