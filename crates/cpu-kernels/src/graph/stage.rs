//! A stage: a layer and what is fused with it, forward and backward, for a batch.

use rayon::prelude::*;

use crate::activation::relu_backward_row;
use crate::buffer::{Buffer, with_scratch};
use crate::dropout::scaled;
use crate::gemm::vectorized;
use crate::parameters::Parameters;
use crate::sums::{MAX_PARTIALS, add};

use super::epilogue::Epilogue;
use super::head::{GradientLayout, Head};
use super::mode::Mode;

/// A layer and those that are fused with it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) head: Head,
    /// Indices of kernel and bias of the head, if it has parameters.
    pub(crate) params: Option<(usize, usize)>,
    pub(crate) epilogue: Epilogue,
    /// The arrays that it reads.
    pub(crate) inputs: Vec<usize>,
    /// For each of them, whether its gradient is needed.
    pub(crate) needs_gradient: Vec<bool>,
    /// The array that it writes.
    pub(crate) output: usize,
    pub(crate) shape: StageShape,
    pub(crate) kept: Kept,
}

/// Numbers of values per example.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageShape {
    /// In the output of the head.
    pub(crate) head: usize,
    /// In a row of pixels there.
    pub(crate) row: usize,
    /// In the output of the stage.
    pub(crate) output: usize,
}

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The output of the head, for batch norm.
    head_output: Buffer,
    masks: Vec<u32>,
    /// The factors of dropout.
    factors: Buffer,
}

/// The gradient of an array.
#[derive(Debug, Default)]
pub(crate) struct Gradient {
    pub(crate) values: Buffer,
    /// Whether one of those who read the array has written its part.
    pub(crate) is_set: bool,
}

/// What the backward passes of all stages share.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The gradient before pooling, for batch norm.
    pub(crate) unpooled: Buffer,
    /// The gradients of the parameters, for each group of examples.
    pub(crate) groups: Buffer,
}

impl Kept {
    /// Allocates what a stage needs to train.
    fn reserve(&mut self, batch: usize, shape: StageShape, epilogue: &Epilogue) {
        if epilogue.norm.is_some() && self.head_output.is_empty() {
            self.head_output = Buffer::zeroed(batch * shape.head);
        }
        if epilogue.dropout.is_some() && self.factors.is_empty() {
            self.factors = Buffer::zeroed(batch * shape.output);
        }
        self.masks.resize(batch * epilogue.masks_len(), 0);
    }
}

impl Stage {
    /// Whether it, or anything before it, has parameters.
    pub(crate) fn is_trained(&self) -> bool {
        let has_params = self.params.is_some() || self.epilogue.norm.is_some();
        has_params || self.needs_gradient.contains(&true)
    }

    /// Computes the output from the arrays before.
    pub(crate) fn forward(
        &mut self,
        batch: usize,
        params: &[&[f32]],
        mode: Mode,
        arrays: &[Buffer],
        output: &mut [f32],
    ) {
        let is_training = matches!(mode, Mode::Train { .. });
        let own = self.params.map_or((&[][..], &[][..]), |(a, b)| (params[a], params[b]));
        self.head.prepare(own.0, own.1, is_training);
        if let Head::Dense(stage) = &mut self.head {
            let (input, input_row) = (&arrays[self.inputs[0]], stage.dense.inputs);
            stage.forward(mode.purpose(), batch, input, input_row, own.0, own.1);
        }
        if is_training {
            self.kept.reserve(batch, self.shape, &self.epilogue);
        }
        let Self { head, inputs, epilogue, kept, shape, .. } = self;
        let Kept { head_output, masks, factors } = kept;
        let head_forward = |example: usize, output: &mut [f32]| {
            let inputs = inputs.iter().map(|&input| part(&arrays[input], batch, example));
            head.forward(own, example, &inputs.collect::<Vec<_>>(), output);
        };
        match (&mut epilogue.norm, mode) {
            (Some(norm), Mode::Train { .. }) => {
                let examples = head_output.par_chunks_exact_mut(shape.head).enumerate();
                let sums = examples.map(|(example, head_output)| {
                    head_forward(example, head_output);
                    norm.value_sums(head_output)
                });
                let sums = sums.collect::<Vec<_>>();
                norm.set_batch(params, &sums, batch * shape.head);
            }
            (Some(norm), Mode::Evaluate { running }) => {
                norm.set_running(params, &running[norm.index]);
            }
            (None, _) => {}
        }
        let is_kept = is_training && epilogue.norm.is_some();
        let mut masks = masks.chunks_exact_mut(epilogue.masks_len().max(1));
        let mut factors = factors.chunks_exact_mut(shape.output);
        let outputs = output.chunks_exact_mut(shape.output).enumerate();
        let tasks = outputs.map(|task| (task, masks.next(), factors.next())).collect::<Vec<_>>();
        tasks.into_par_iter().for_each(|((example, output), masks, factors)| {
            let masks = masks.filter(|_| is_training).unwrap_or_default();
            if is_kept {
                epilogue.forward(part(head_output, batch, example), output, masks);
            } else if epilogue.keeps_values() {
                head_forward(example, output);
            } else {
                with_scratch([shape.head], |[head_output]| {
                    head_forward(example, head_output);
                    epilogue.forward(head_output, output, masks);
                });
            }
            if let (Mode::Train { dropout }, Some(index), Some(factors)) =
                (mode, epilogue.dropout, factors)
            {
                dropout(index, example * shape.output, factors);
                multiply(factors, output);
            }
        });
    }

    /// Backpropagates the gradient of the output, which is overwritten, to the inputs, and updates
    /// the parameters.
    pub(crate) fn backward(
        &mut self,
        batch: usize,
        arrays: &[Buffer],
        d_output: &mut [f32],
        gradients: &mut [Gradient],
        workspace: &mut Workspace,
        parameters: &mut Parameters,
    ) {
        let Workspace { unpooled, groups } = workspace;
        if self.epilogue.dropout.is_some() {
            let factors = self.kept.factors.par_chunks_exact(self.shape.output);
            let examples = d_output.par_chunks_exact_mut(self.shape.output);
            examples.zip(factors).for_each(|(d_output, factors)| multiply(factors, d_output));
        }
        let unpooled = &mut unpooled[..batch * self.shape.head];
        let d_output = self.backward_norm(batch, d_output, unpooled, parameters);
        if matches!(self.head, Head::Dense(_)) {
            self.backward_dense(batch, arrays, d_output, gradients, parameters);
        } else {
            for index in 0..self.inputs.len() {
                self.backward_head(batch, index, arrays, d_output, gradients, groups);
            }
            if let Some((kernel, bias)) = self.params {
                let len = self.head.grads_len();
                let parts = &groups[..groups_of(batch) * len];
                let start = parameters.update_by_sum(kernel, parts, len, 0);
                parameters.update_by_sum(bias, parts, len, start);
            }
        }
    }

    /// Updates the batch norm. Returns the gradient of what it has computed, before pooling; the
    /// given one if there is no batch norm or no pooling.
    fn backward_norm<'a>(
        &mut self,
        batch: usize,
        d_output: &'a [f32],
        unpooled: &'a mut [f32],
        parameters: &mut Parameters,
    ) -> &'a [f32] {
        let Self { epilogue: Epilogue { norm: Some(norm), pooling, .. }, kept, shape, .. } = self
        else {
            return d_output;
        };
        let values = |example| part(&kept.head_output, batch, example);
        let masks_len = kept.masks.len() / batch;
        let (dz, sums) = match pooling {
            None => {
                let examples = d_output.par_chunks_exact(shape.head).enumerate();
                let sums = examples.map(|(example, dz)| norm.gradient_sums(values(example), dz));
                (d_output, sums.collect::<Vec<_>>())
            }
            Some(pooling) => {
                let examples = unpooled.par_chunks_exact_mut(shape.head).enumerate();
                let sums = examples.map(|(example, dz)| {
                    let masks = &kept.masks[example * masks_len..][..masks_len];
                    pooling.unpool(part(d_output, batch, example), masks, dz, 0, shape.row);
                    norm.gradient_sums(values(example), dz)
                });
                let sums = sums.collect::<Vec<_>>();
                (&*unpooled, sums)
            }
        };
        norm.update(&sums, batch * shape.head, parameters);
        dz
    }

    /// The gradient of the head's output for an example, given what
    /// [`backward_norm`](Self::backward_norm) returns.
    fn head_gradient(
        &self,
        batch: usize,
        example: usize,
        output: &[f32],
        d_output: &[f32],
        layout: GradientLayout,
        target: &mut [f32],
    ) {
        let GradientLayout { origin, row, .. } = layout;
        let (output, d_output) = (part(output, batch, example), part(d_output, batch, example));
        match (&self.epilogue.norm, &self.epilogue.pooling) {
            (None, Some(pooling)) => {
                let masks_len = self.kept.masks.len() / batch;
                let masks = &self.kept.masks[example * masks_len..][..masks_len];
                pooling.unpool(d_output, masks, target, origin, row);
            }
            (norm, _) => {
                target[..origin].fill(0.0);
                let rows = target[origin..].chunks_mut(row).zip(d_output.chunks(self.shape.row));
                let mut end = origin;
                for (y, (target, d_output)) in rows.enumerate() {
                    let (target, padding) = target.split_at_mut(self.shape.row);
                    let span = y * self.shape.row..(y + 1) * self.shape.row;
                    match norm {
                        Some(norm) => {
                            let values = part(&self.kept.head_output, batch, example);
                            norm.backward(&values[span], d_output, target);
                        }
                        None if self.epilogue.relu => {
                            relu_backward_row(&output[span], d_output, target);
                        }
                        None => target.copy_from_slice(d_output),
                    }
                    padding.fill(0.0);
                    end += row;
                }
                if let Some(rest) = target.get_mut(end..) {
                    rest.fill(0.0);
                }
            }
        }
    }

    /// Backpropagates to an input, example by example while it is in the cache. Groups of examples
    /// run in parallel, and each sums its own gradients of the parameters. The groups depend only
    /// on the batch size, and their sums are added in order.
    fn backward_head(
        &self,
        batch: usize,
        index: usize,
        arrays: &[Buffer],
        d_output: &[f32],
        gradients: &mut [Gradient],
        groups: &mut [f32],
    ) {
        let (head, input) = (&self.head, self.inputs[index]);
        let group_size = batch.div_ceil(MAX_PARTIALS);
        let input_len = arrays[input].len() / batch;
        let layout = head.gradient_layout(self.shape.head, self.shape.row);
        // Nothing changes the gradient on its way to a head that wants it as it is.
        let is_direct = self.epilogue.keeps_values() && layout.len == self.shape.head;
        let Gradient { values, is_set } = &mut gradients[input];
        let is_first = !std::mem::replace(is_set, true);
        let mut d_inputs = match self.needs_gradient[index] {
            true => Some(values.chunks_mut(group_size * input_len)),
            false => None,
        };
        let mut d_params = groups.chunks_exact_mut(head.grads_len().max(1));
        let tasks = (0..groups_of(batch)).map(|group| {
            let d_input = d_inputs.as_mut().and_then(Iterator::next).unwrap_or_default();
            let d_params = d_params.next().unwrap_or_default();
            (group * group_size, d_input, &mut d_params[..head.grads_len()])
        });
        tasks.collect::<Vec<_>>().into_par_iter().for_each(|(first, d_inputs, d_params)| {
            d_params.fill(0.0);
            let lens = [head.packed_grads_len(), layout.len, input_len];
            with_scratch(lens, |[d_packed, target, addend]| {
                d_packed.fill(0.0);
                let mut d_inputs = d_inputs.chunks_exact_mut(input_len);
                for example in first..batch.min(first + group_size) {
                    let d_output = if is_direct {
                        part(d_output, batch, example)
                    } else {
                        let output = &arrays[self.output];
                        self.head_gradient(batch, example, output, d_output, layout, target);
                        &*target
                    };
                    let input = part(&arrays[input], batch, example);
                    let output = part(&arrays[self.output], batch, example);
                    if index == 0 {
                        head.backward_params(input, d_output, d_params, d_packed);
                    }
                    match d_inputs.next() {
                        Some(d_input) if is_first => {
                            head.backward_input(index, input, output, d_output, d_input);
                        }
                        Some(d_input) => {
                            head.backward_input(index, input, output, d_output, addend);
                            add(addend, d_input);
                        }
                        None => {}
                    }
                }
                head.inverse_transform_grad(d_packed, d_params);
            });
        });
    }

    /// Backpropagates through a dense layer, which updates its own parameters.
    fn backward_dense(
        &mut self,
        batch: usize,
        arrays: &[Buffer],
        d_output: &[f32],
        gradients: &mut [Gradient],
        parameters: &mut Parameters,
    ) {
        let mut d_head = match &mut self.head {
            Head::Dense(stage) => std::mem::take(&mut stage.d_output),
            _ => return,
        };
        let layout = self.head.gradient_layout(self.shape.head, self.shape.row);
        d_head.par_chunks_exact_mut(self.shape.head).enumerate().for_each(|(example, target)| {
            let output = &arrays[self.output];
            self.head_gradient(batch, example, output, d_output, layout, target);
        });
        let Head::Dense(stage) = &mut self.head else { return };
        stage.d_output = d_head;
        let input = self.inputs[0];
        let input_len = arrays[input].len() / batch;
        stage.backward(batch, &arrays[input], input_len, parameters);
        if !self.needs_gradient[0] {
            return;
        }
        let Gradient { values, is_set } = &mut gradients[input];
        let is_first = !std::mem::replace(is_set, true);
        values.par_chunks_exact_mut(input_len).enumerate().for_each(|(example, d_input)| {
            if is_first {
                stage.input_gradient(batch, example, d_input);
            } else {
                with_scratch([input_len], |[addend]| {
                    stage.input_gradient(batch, example, addend);
                    add(addend, d_input);
                });
            }
        });
    }
}

/// The number of groups that sum gradients in parallel.
fn groups_of(batch: usize) -> usize {
    batch.div_ceil(batch.div_ceil(MAX_PARTIALS))
}

/// The values of one example.
fn part(values: &[f32], batch: usize, example: usize) -> &[f32] {
    let len = values.len() / batch;
    &values[example * len..][..len]
}

fn multiply(factors: &[f32], values: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (value, factor) in values.iter_mut().zip(factors) {
                *value = scaled(*value, *factor);
            }
        },
    );
}
