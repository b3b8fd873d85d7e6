//! The numbers by which autograd tells tensors apart, kept apart between the cells of a notebook.

use std::hash::{Hash, Hasher};

use candle_core::{Device, Tensor};

use super::Params;
use crate::Result;

/// Makes sure that no tensor to come is taken for one of these.
///
/// candle numbers tensors as they are made, and autograd goes by the numbers. But each cell of a
/// notebook is a library with a copy of candle of its own, which counts from 1 again: a tensor
/// could get the number of a parameter that was made in an earlier cell, and its gradient, too.
pub(crate) fn keep_apart<'a>(
    params: impl IntoIterator<Item = &'a Params>,
    x: &Tensor,
) -> Result<()> {
    let vars = params.into_iter().flat_map(Params::iter).map(|(_, var)| number(var));
    use_up(vars.fold(number(x), u64::max))
}

/// Takes numbers until they are beyond `most`.
fn use_up(most: u64) -> Result<()> {
    while number(&Tensor::new(0u8, &Device::Cpu)?) < most {}
    Ok(())
}

/// The number of a tensor, which candle shows to hashers alone.
fn number(tensor: &Tensor) -> u64 {
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

    fn new_number() -> u64 {
        number(&Tensor::new(0u8, &Device::Cpu).unwrap())
    }

    #[test]
    fn tensors_are_numbered_in_the_order_in_which_they_are_made() {
        let first = new_number();
        assert!(first > 0 && new_number() > first);
    }

    #[test]
    fn tensors_to_come_get_numbers_beyond_those_that_are_used_up() {
        let most = new_number() + 1000;
        use_up(most).unwrap();
        assert!(new_number() > most);
        // Nothing is left to do.
        let before = new_number();
        use_up(most).unwrap();
        assert!(new_number() > before);
    }
}
