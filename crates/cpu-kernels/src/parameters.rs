//! The parameters of a training step, and their update.

use rayon::prelude::*;

use crate::gemm::vectorized;

/// All parameters of a network and their momentum, in the order of its plan.
pub(crate) struct Parameters<'a, 'p, 'm> {
    pub(crate) params: &'a mut [&'p mut [f32]],
    pub(crate) momentum_buffers: &'a mut [&'m mut [f32]],
    pub(crate) learning_rate: f32,
    pub(crate) beta: f32,
}

impl Parameters<'_, '_, '_> {
    /// The update of one parameter.
    pub(crate) fn update(&mut self, index: usize) -> ParamUpdate<'_> {
        ParamUpdate {
            param: self.params[index],
            momentum: self.momentum_buffers[index],
            learning_rate: self.learning_rate,
            beta: self.beta,
        }
    }
}

/// A parameter, or a block of one, to be updated.
pub(crate) struct ParamUpdate<'a> {
    pub(crate) param: &'a mut [f32],
    momentum: &'a mut [f32],
    learning_rate: f32,
    beta: f32,
}

impl<'a> ParamUpdate<'a> {
    /// Cuts the parameter into blocks of `len` values, to be updated in parallel.
    pub(crate) fn par_blocks(
        self,
        len: usize,
    ) -> impl IndexedParallelIterator<Item = ParamUpdate<'a>> {
        let Self { param, momentum, learning_rate, beta } = self;
        param
            .par_chunks_mut(len)
            .zip(momentum.par_chunks_mut(len))
            .map(move |(param, momentum)| ParamUpdate { param, momentum, learning_rate, beta })
    }

    /// Applies a gradient g: m ← βm + g; p ← p − learning_rate·m.
    pub(crate) fn apply(self, grad: &[f32]) {
        let Self { param, momentum, learning_rate, beta } = self;
        vectorized(
            #[inline(always)]
            || {
                for ((param, momentum), grad) in param.iter_mut().zip(momentum).zip(grad) {
                    *momentum = without_subnormal(beta * *momentum + grad);
                    *param -= learning_rate * *momentum;
                }
            },
        );
    }
}

/// Flushes subnormal numbers to zero, as XLA does on a CPU.
///
/// The momentum of a weight whose input is always zero halves every seven steps. Without the flush
/// it would end among the subnormal numbers, which slow many processors down a hundredfold.
#[inline(always)]
pub fn without_subnormal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}
