//! The numbers by which autograd tells tensors apart, kept apart between the cells of a notebook.

use std::hash::{Hash, Hasher};

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::params::Params;

/// Makes sure that no tensor to come is taken for one of these.
///
/// candle numbers tensors as they are made, and autograd goes by the numbers. But each cell of a
/// notebook is a library with a copy of candle of its own, which counts from 1 again: a tensor
/// could get the number of a parameter that was made in an earlier cell, and its gradient, too.
pub fn ensure_fresh_ids<'a>(
    params: impl IntoIterator<Item = &'a Params>,
    x: &Tensor,
) -> Result<()> {
    let vars = params.into_iter().flat_map(Params::iter).map(|(_, var)| tensor_id(var));
    skip_ids_to(vars.fold(tensor_id(x), u64::max))
}

/// Takes numbers until they are beyond `most`.
fn skip_ids_to(most: u64) -> Result<()> {
    while tensor_id(&Tensor::new(0u8, &Device::Cpu)?) < most {}
    Ok(())
}

/// The number of a tensor, which candle shows to hashers alone.
fn tensor_id(tensor: &Tensor) -> u64 {
    struct Last(u64);
    impl Hasher for Last {
        fn write(&mut self, _: &[u8]) {}
        fn write_usize(&mut self, number: usize) {
            self.0 = number as u64;
        }
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let mut last = Last(0);
    tensor.id().hash(&mut last);
    last.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_id() -> u64 {
        tensor_id(&Tensor::new(0u8, &Device::Cpu).unwrap())
    }

    #[test]
    fn tensors_are_numbered_in_the_order_in_which_they_are_made() {
        let first = new_id();
        assert!(first > 0 && new_id() > first);
    }

    #[test]
    fn tensors_to_come_get_numbers_beyond_those_that_are_used_up() {
        let most = new_id() + 1000;
        skip_ids_to(most).unwrap();
        assert!(new_id() > most);
        // Nothing is left to do.
        let before = new_id();
        skip_ids_to(most).unwrap();
        assert!(new_id() > before);
    }
}
