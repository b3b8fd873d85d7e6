//! The parameters of a step, and how their gradients are used.

use rayon::iter::Either;
use rayon::prelude::*;

use crate::gemm::vectorized;

/// All parameters of a network, in the order of its plan.
pub(crate) enum Parameters<'a, 'p, 's> {
    /// Gradients are applied at once: m ← βm + g; p ← p − lr·m.
    Momentum {
        params: &'a mut [&'p mut [f32]],
        momentum_buffers: &'a mut [&'s mut [f32]],
        learning_rate: f32,
        beta: f32,
    },
    /// Gradients are stored.
    Gradient { params: &'a [&'p [f32]], gradients: &'a mut [&'s mut [f32]] },
}

impl Parameters<'_, '_, '_> {
    pub(crate) fn get(&self, index: usize) -> &[f32] {
        match self {
            Self::Momentum { params, .. } => params[index],
            Self::Gradient { params, .. } => params[index],
        }
    }

    pub(crate) fn update(&mut self, index: usize) -> ParamUpdate<'_> {
        match self {
            Self::Momentum { params, momentum_buffers, learning_rate, beta } => {
                ParamUpdate::Momentum {
                    param: params[index],
                    momentum: momentum_buffers[index],
                    learning_rate: *learning_rate,
                    beta: *beta,
                }
            }
            Self::Gradient { params, gradients } => {
                ParamUpdate::Gradient { param: params[index], gradient: gradients[index] }
            }
        }
    }
}

/// A parameter, or a block of one, and how its gradient is used.
pub(crate) enum ParamUpdate<'a> {
    Momentum { param: &'a mut [f32], momentum: &'a mut [f32], learning_rate: f32, beta: f32 },
    Gradient { param: &'a [f32], gradient: &'a mut [f32] },
}

impl<'a> ParamUpdate<'a> {
    pub(crate) fn param(&self) -> &[f32] {
        match self {
            Self::Momentum { param, .. } => param,
            Self::Gradient { param, .. } => param,
        }
    }

    /// Cuts the parameter into blocks of `len` values, to be updated in parallel.
    pub(crate) fn par_blocks(
        self,
        len: usize,
    ) -> impl IndexedParallelIterator<Item = ParamUpdate<'a>> {
        match self {
            Self::Momentum { param, momentum, learning_rate, beta } => {
                Either::Left(param.par_chunks_mut(len).zip(momentum.par_chunks_mut(len)).map(
                    move |(param, momentum)| ParamUpdate::Momentum {
                        param,
                        momentum,
                        learning_rate,
                        beta,
                    },
                ))
            }
            Self::Gradient { param, gradient } => Either::Right(
                param
                    .par_chunks(len)
                    .zip(gradient.par_chunks_mut(len))
                    .map(|(param, gradient)| ParamUpdate::Gradient { param, gradient }),
            ),
        }
    }

    /// Applies the momentum update, or stores the gradient.
    pub(crate) fn apply(self, grad: &[f32]) {
        match self {
            Self::Momentum { param, momentum, learning_rate, beta } => vectorized(
                #[inline(always)]
                || {
                    for ((param, momentum), grad) in param.iter_mut().zip(momentum).zip(grad) {
                        *momentum = without_subnormal(beta * *momentum + grad);
                        *param -= learning_rate * *momentum;
                    }
                },
            ),
            Self::Gradient { gradient, .. } => gradient.copy_from_slice(grad),
        }
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
