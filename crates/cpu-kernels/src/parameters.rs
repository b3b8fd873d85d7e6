//! The parameters of a step, and what becomes of their gradients.

use rayon::iter::Either;
use rayon::prelude::*;

use crate::gemm::vectorized;

/// All parameters of a network in the order of its plan.
pub(crate) enum Parameters<'a, 'p, 's> {
    /// Each gradient is used at once: m ← βm + g; p ← p − lr·m.
    Momentum {
        params: &'a mut [&'p mut [f32]],
        momenta: &'a mut [&'s mut [f32]],
        learning_rate: f32,
        beta: f32,
    },
    /// Each gradient is handed out.
    Gradient { params: &'a [&'p [f32]], gradients: &'a mut [&'s mut [f32]] },
}

impl Parameters<'_, '_, '_> {
    pub(crate) fn get(&self, index: usize) -> &[f32] {
        match self {
            Self::Momentum { params, .. } => params[index],
            Self::Gradient { params, .. } => params[index],
        }
    }

    pub(crate) fn target(&mut self, index: usize) -> Target<'_> {
        match self {
            Self::Momentum { params, momenta, learning_rate, beta } => Target::Momentum {
                param: params[index],
                momentum: momenta[index],
                learning_rate: *learning_rate,
                beta: *beta,
            },
            Self::Gradient { params, gradients } => {
                Target::Gradient { param: params[index], gradient: gradients[index] }
            }
        }
    }
}

/// A parameter, or a block of one, with the place its gradient goes to.
pub(crate) enum Target<'a> {
    Momentum { param: &'a mut [f32], momentum: &'a mut [f32], learning_rate: f32, beta: f32 },
    Gradient { param: &'a [f32], gradient: &'a mut [f32] },
}

impl<'a> Target<'a> {
    pub(crate) fn param(&self) -> &[f32] {
        match self {
            Self::Momentum { param, .. } => param,
            Self::Gradient { param, .. } => param,
        }
    }

    /// Cuts the parameter into blocks of `len` values, to be treated side by side.
    pub(crate) fn par_blocks(self, len: usize) -> impl IndexedParallelIterator<Item = Target<'a>> {
        match self {
            Self::Momentum { param, momentum, learning_rate, beta } => {
                Either::Left(param.par_chunks_mut(len).zip(momentum.par_chunks_mut(len)).map(
                    move |(param, momentum)| Target::Momentum {
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
                    .map(|(param, gradient)| Target::Gradient { param, gradient }),
            ),
        }
    }

    /// Uses or hands out the gradient of this block.
    pub(crate) fn apply(self, new: &[f32]) {
        match self {
            Self::Momentum { param, momentum, learning_rate, beta } => vectorized(
                #[inline(always)]
                || {
                    for ((param, momentum), new) in param.iter_mut().zip(momentum).zip(new) {
                        *momentum = without_subnormal(beta * *momentum + new);
                        *param -= learning_rate * *momentum;
                    }
                },
            ),
            Self::Gradient { gradient, .. } => gradient.copy_from_slice(new),
        }
    }
}

/// Zero for what is nearer to zero than any normal number, as XLA has it on a CPU.
///
/// The momentum of a weight whose input is always zero halves every seven steps, and would end not
/// at zero but at the smallest subnormal numbers, with which many processors compute a hundred times
/// slower.
#[inline(always)]
pub fn without_subnormal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}
