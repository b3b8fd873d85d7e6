//! The parameters of a training step, and their update.

use rayon::iter::{Either, repeat_n};
use rayon::prelude::*;

use crate::error::{Result, check_len};
use crate::sums::add;
use crate::update_rule::UpdateRule;

/// Values per parallel task of [`apply_gradient`].
const BLOCK: usize = 1 << 14;

/// All parameters of a network and their moments, in the order of its plan: the first moment of
/// every parameter, then the second of every parameter, if the rule has one.
pub(crate) struct Parameters<'a, 'p, 'm> {
    pub(crate) params: &'a mut [&'p mut [f32]],
    pub(crate) moments: &'a mut [&'m mut [f32]],
    /// Without a rule, the gradient itself becomes the moment.
    pub(crate) rule: Option<UpdateRule>,
}

/// Values per task of the sum over groups.
const SUM_BLOCK: usize = 1024;

impl Parameters<'_, '_, '_> {
    /// Updates a parameter by the sum of the gradients of groups, which are `stride` values apart
    /// and start at `start`. Returns where they end.
    pub(crate) fn update_by_sum(
        &mut self,
        index: usize,
        groups: &[f32],
        stride: usize,
        start: usize,
    ) -> usize {
        let update = self.update(index);
        let len = update.param.len();
        update.par_blocks(SUM_BLOCK).enumerate().for_each(|(block, update)| {
            let mut sum = [0.0; SUM_BLOCK];
            let sum = &mut sum[..update.param.len()];
            for group in groups.chunks_exact(stride) {
                add(&group[start + block * SUM_BLOCK..][..sum.len()], sum);
            }
            update.apply(sum);
        });
        start + len
    }

    /// The update of one parameter.
    pub(crate) fn update(&mut self, index: usize) -> ParamUpdate<'_> {
        let (first, second) = self.moments.split_at_mut(self.params.len());
        ParamUpdate {
            param: self.params[index],
            first: first[index],
            second: second.get_mut(index).map_or(&mut [], |moment| moment),
            rule: self.rule,
        }
    }
}

/// Checks the lengths of a network's parameters.
pub(crate) fn check_params(lens: &[usize], params: &[impl AsRef<[f32]>]) -> Result<()> {
    check_len("parameters", lens.len(), params.len())?;
    let mut pairs = lens.iter().zip(params);
    pairs.try_for_each(|(&len, param)| check_len("parameters", len, param.as_ref().len()))
}

/// Checks the lengths of the moments, of which each parameter has `per_param`.
pub(crate) fn check_moments(
    lens: &[usize],
    moments: &[&mut [f32]],
    per_param: usize,
) -> Result<()> {
    check_len("moments", per_param * lens.len(), moments.len())?;
    let mut pairs = lens.iter().cycle().zip(moments);
    pairs.try_for_each(|(&len, moment)| check_len("moments", len, moment.len()))
}

/// A parameter, or a block of one, to be updated.
pub(crate) struct ParamUpdate<'a> {
    pub(crate) param: &'a mut [f32],
    first: &'a mut [f32],
    /// Empty if the rule has one moment.
    second: &'a mut [f32],
    rule: Option<UpdateRule>,
}

impl<'a> ParamUpdate<'a> {
    /// Cuts the parameter into blocks of `len` values, to be updated in parallel.
    pub(crate) fn par_blocks(
        self,
        len: usize,
    ) -> impl IndexedParallelIterator<Item = ParamUpdate<'a>> {
        let Self { param, first, second, rule } = self;
        let second = if second.is_empty() {
            let blocks = param.len().div_ceil(len);
            Either::Left(repeat_n((), blocks).map(|()| <&mut [f32]>::default()))
        } else {
            Either::Right(second.par_chunks_mut(len))
        };
        param
            .par_chunks_mut(len)
            .zip(first.par_chunks_mut(len))
            .zip(second)
            .map(move |((param, first), second)| ParamUpdate { param, first, second, rule })
    }

    /// Applies a gradient.
    pub(crate) fn apply(self, grad: &[f32]) {
        match self.rule {
            Some(rule) => rule.update(self.param, self.first, self.second, grad),
            None => self.first.copy_from_slice(grad),
        }
    }
}

/// Updates one parameter and its moments by a gradient, as a compiled step does, bit for bit.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) unless there are as many moments as the rule
/// [has](UpdateRule::moments), and they and the gradient are as long as the parameter. Nothing has
/// been changed then.
pub fn apply_gradient(
    rule: UpdateRule,
    param: &mut [f32],
    moments: &mut [&mut [f32]],
    grad: &[f32],
) -> Result<()> {
    check_len("moments", rule.moments(), moments.len())?;
    moments.iter().try_for_each(|moment| check_len("moment", param.len(), moment.len()))?;
    check_len("gradient", param.len(), grad.len())?;
    let mut parameters = Parameters { params: &mut [param], moments, rule: Some(rule) };
    let blocks = parameters.update(0).par_blocks(BLOCK);
    blocks.zip(grad.par_chunks(BLOCK)).for_each(|(block, grad)| block.apply(grad));
    Ok(())
}
